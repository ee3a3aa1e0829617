"""Export networks to files that run without this project, and cached outputs to other loaders' formats."""

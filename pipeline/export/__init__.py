"""Export a trained network to one file that runs without this project, and check its outputs."""

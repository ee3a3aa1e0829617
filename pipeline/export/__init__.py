"""A trained network leaves the project: one file that runs without it, and was seen to compute the same."""

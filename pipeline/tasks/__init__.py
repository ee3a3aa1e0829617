"""Tasks: what a teacher says, when two answers agree, and how good a model is."""

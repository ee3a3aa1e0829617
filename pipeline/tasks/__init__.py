"""Tasks: the meaning of a teacher's outputs, agreement of two answers, and the quality of a model."""

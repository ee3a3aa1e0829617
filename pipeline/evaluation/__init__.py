"""Evaluation of a model: the figures of its task, its cost, and label errors."""

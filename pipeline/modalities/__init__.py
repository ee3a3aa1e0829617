"""Kinds of samples: each knows its sources, its views, how they are rendered and what a model is given."""

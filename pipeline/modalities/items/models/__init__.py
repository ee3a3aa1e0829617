"""Sequential recommenders of the literature."""

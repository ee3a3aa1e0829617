"""Items: histories of users, the next item as label, recommenders as models."""

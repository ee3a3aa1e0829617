"""Families of models of texts."""

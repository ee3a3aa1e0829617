"""Families of image models."""

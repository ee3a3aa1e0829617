"""Pixels of a view: two ways to crop, one arithmetic of integers for everything after."""

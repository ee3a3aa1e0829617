"""Samples: before they are prepared, on their way, and packed on disk."""

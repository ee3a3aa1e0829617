"""Samples: as found in a source, as drafts, and packed on disk."""

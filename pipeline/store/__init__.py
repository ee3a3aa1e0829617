"""The store of cached logits: format on disk, writing, reading, verification."""

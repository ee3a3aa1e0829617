"""The store of cached logits: its form on disk, writing, reading, checking."""

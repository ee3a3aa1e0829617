"""Images on disk: where they come from, how they are packed, what they are called."""

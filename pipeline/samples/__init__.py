"""Images on disk: where they come from, how they are kept, what they are called."""

"""Images: from files and arrays to the pixels of a view, and to the input of a model."""

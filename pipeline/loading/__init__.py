"""Loading: images and teacher's outputs to a model, ahead of need."""

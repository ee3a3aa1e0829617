"""Loading: deliver samples and teacher outputs to a model, ahead of need."""

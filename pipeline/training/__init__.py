"""Training: settings, optimiser, loop, and a complete run."""

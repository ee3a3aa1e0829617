"""Training: settings, optimisation, the loop, and one whole run."""

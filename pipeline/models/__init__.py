"""Models: architectures by name, their weights, and how they want their images."""

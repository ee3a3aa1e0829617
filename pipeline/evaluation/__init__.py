"""What is said of a model: its task's figures, cost, label errors."""

"""What is said of a model: figures, calibration, classes, cost, label errors."""

"""What knows nothing of samples, models or stores."""

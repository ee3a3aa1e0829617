"""What views of all modalities share: who is mixed with whom."""

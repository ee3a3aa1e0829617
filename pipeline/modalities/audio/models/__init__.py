"""Networks for clips: the literature's, and Hugging Face's audio classifiers."""

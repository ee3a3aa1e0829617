"""Views, the part shared by all modalities: which samples are mixed."""

"""Storage locations: local folders and object stores."""

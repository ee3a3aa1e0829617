"""Where bytes lie: local folders and object stores."""

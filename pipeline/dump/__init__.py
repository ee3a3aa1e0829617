"""Stage one: run a teacher over every view of every sample, once, and keep what it says."""

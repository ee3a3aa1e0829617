"""Stage one: run a teacher once over every view of every sample and store its outputs."""

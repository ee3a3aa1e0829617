"""The report of a sweep: numbers (results), drawings (figures) and one HTML page (page)."""

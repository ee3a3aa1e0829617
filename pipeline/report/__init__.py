"""The report: what a sweep's runs say, as numbers (results), drawings (figures) and one page (page)."""

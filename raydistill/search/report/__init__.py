"""The page, pictures and spreadsheet of a sweep."""

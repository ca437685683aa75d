"""Reading published and staged datasets."""

"""Records to numbers and back, and what names a record."""

"""From a source to validated, split, staged records."""

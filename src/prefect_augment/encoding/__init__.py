"""Records as numbers and back, and the identities of records."""

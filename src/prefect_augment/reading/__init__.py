"""Reading: published datasets for users, staged records for stages."""

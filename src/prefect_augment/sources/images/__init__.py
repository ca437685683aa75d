"""Images in folders, archives and tables."""

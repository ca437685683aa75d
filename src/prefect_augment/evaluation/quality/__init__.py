"""What synthetic records have to meet."""

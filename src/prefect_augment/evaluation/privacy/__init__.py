"""What synthetic records reveal about real ones."""

"""What decides, with its interval."""

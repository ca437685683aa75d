"""What keeps a destination in order."""

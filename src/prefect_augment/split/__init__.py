"""The split into training, validation and hold-out."""

"""What synthetic records give away."""

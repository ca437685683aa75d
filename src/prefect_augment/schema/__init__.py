"""Results: frozen, and stored as JSON."""

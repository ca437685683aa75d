"""What a strategy trains."""

"""How many records each class gets, and what that costs."""

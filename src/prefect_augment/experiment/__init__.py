"""The comparison of strategies: what is tried, how it is scored, what the hold-out confirms."""

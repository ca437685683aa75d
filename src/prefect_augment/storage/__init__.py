"""Object stores, and work in progress on them."""

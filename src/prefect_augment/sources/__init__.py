"""Readers of what users have."""

"""Readers of the users' formats."""

"""Generative models of tables."""

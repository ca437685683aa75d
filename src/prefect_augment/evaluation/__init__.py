"""Classifiers, metrics, filters and privacy measurements."""

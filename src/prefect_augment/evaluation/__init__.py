"""Metrics, estimators, gates, the comparison of strategies, and the report."""

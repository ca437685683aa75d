"""Metrics, learners, gates, the comparison of arms, and the report."""

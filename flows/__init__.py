"""Sequences of tasks: the flows that people schedule and trigger."""

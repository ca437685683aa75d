"""Shard formats behind one contract."""

"""One file format each, behind one contract."""

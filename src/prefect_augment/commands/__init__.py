"""The commands of :mod:`prefect_augment.cli`, a module for each kind of work."""

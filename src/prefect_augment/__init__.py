"""Augmentation as a step of ETL: rebalance labelled datasets inside Prefect, with proof that it helps.

The public names are in ``__init__.pyi`` and are loaded on first use.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("prefect-augment")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A linear model of the small table."""

from pathlib import Path

import pytest
from support.latents import Trained, fit, staged
from support.tables import make_table

from prefect_augment.params import PluginModel


@pytest.fixture
def trained(linear_model: PluginModel, tmp_path: Path) -> Trained:
    store, dataset = staged(make_table(), tmp_path)
    return Trained(store, dataset, fit(store, dataset, linear_model))

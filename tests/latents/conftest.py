"""A linear model of the small table."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from support.latents import Trained, fit, staged

from prefect_augment.params import PluginModel


@pytest.fixture
def trained(
    make_table: Callable[..., pa.Table], linear_model: PluginModel, tmp_path: Path
) -> Trained:
    store, dataset = staged(make_table(), tmp_path)
    return Trained(store, dataset, fit(store, dataset, linear_model))

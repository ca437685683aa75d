"""What the tests of a module share: a store in memory, and the small table in it."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from support.staging import ingested

from prefect_augment.schema import DatasetRef
from prefect_augment.storage import Store


@pytest.fixture(scope="module")
def store(memory_store: Store) -> Store:
    return memory_store


@pytest.fixture(scope="module")
def dataset(
    store: Store, make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> DatasetRef:
    return ingested(make_table(), tmp_path_factory.mktemp("source"), store)

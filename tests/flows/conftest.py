from pathlib import Path

import pytest

from prefect_augment.params import Destination


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return Destination(uri=str(tmp_path / "out"))

"""What the notes say of a source's images."""

from typing import Any

import pytest

from prefect_augment.ingest.validate_images import image_notes
from prefect_augment.schema import ImageInfo


@pytest.mark.parametrize(
    ("info", "note"),
    [
        ({"modes": {"L": 14886}}, "images: 14,886 grey; all 28 × 28 px"),
        (
            {"modes": {"RGB": 3, "I;16": 1}, "n_sizes": 2, "smallest_side": 20},
            "images: 3 colour, 1 I;16; 2 sizes of 20 to 28 px, most often 28 × 28 px",
        ),
    ],
)
def test_kinds_and_sizes_are_in_words(info: dict[str, Any], note: str) -> None:
    alike = {"n_sizes": 1, "most_common_size": (28, 28), "smallest_side": 28, "largest_side": 28}
    rest = {"column": "image", "formats": {"PNG": 4}, "sizes": {"28x28": 3}, "n_channels": 1}
    assert image_notes(ImageInfo.model_validate(alike | rest | info)) == (note,)

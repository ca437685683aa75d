"""Pictures of vectors and of anomaly scores."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from prefect_augment.figures.latent_charts import Cloud, Scores, cloud_chart, scores_chart
from prefect_augment.figures.style import MAX_BYTES

RNG = np.random.default_rng(0)


def colours(png: bytes) -> set[tuple[int, ...]]:
    image = Image.open(BytesIO(png)).convert("RGB")
    return {colour for _, colour in image.getcolors(1 << 24) or []}


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [1, 3, 12])
def test_a_cloud_of_any_number_of_classes_is_an_artifacts_size(n_classes: int) -> None:
    cloud = Cloud({f"$class_{k}$": RNG.normal(k, 1, (250, 2)) for k in range(n_classes)}, 0.4)
    png = cloud_chart(cloud)
    assert len(png) < MAX_BYTES
    assert png == cloud_chart(cloud), "equal data give equal bytes"


def test_scores_far_from_all_others_do_not_squeeze_the_rest() -> None:
    normal = RNG.normal(1, 0.1, 1000)
    odd = Scores(normal, np.append(normal, 1e6), np.zeros(0), 1.2)
    even = Scores(normal, np.append(normal, 1.3), np.zeros(0), 1.2)
    # The grey of the normal validation scores fills as much of either picture.
    pictures = [Image.open(BytesIO(scores_chart(s))).convert("RGB") for s in (odd, even)]
    grey = [(np.array(picture) == (195, 201, 208)).all(axis=2).mean() for picture in pictures]
    assert grey[0] == pytest.approx(grey[1], rel=0.2)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_scores_that_are_all_alike_can_be_drawn(value: float) -> None:
    same = np.full(20, value)
    assert len(scores_chart(Scores(same, same, same[:3], value))) < MAX_BYTES


@pytest.mark.slow
def test_other_classes_are_drawn_only_where_there_are_some() -> None:
    normal = RNG.normal(size=300)
    orange = (213, 94, 0)
    assert orange in colours(scores_chart(Scores(normal, normal, normal + 3, 2.0)))
    assert orange not in colours(scores_chart(Scores(normal, normal, np.zeros(0), 2.0)))

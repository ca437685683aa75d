"""The plan of a detection set: how many images to copy so that rare classes of boxes are balanced.

An image's class is its rarest one (as annotations are read), so all boxes of a class lie in images of that class or of
rarer ones. Copies are counted from the rarest class on; each class fills what the copies of rarer ones leave open. With
``balance.target: sqrt`` that is repeat-factor sampling: a class of frequency f is repeated sqrt(t / f) times, t being
the most frequent one's (Gupta, Dollár & Girshick 2019, "LVIS", section 4.2), and an image as often as its rarest class.
"""

import math
from collections import Counter, defaultdict

from prefect_augment.encoding.annotations import OBJECTS, ImageTargets
from prefect_augment.encoding.labels import label_text
from prefect_augment.errors import ParameterError
from prefect_augment.params import Balance
from prefect_augment.plan.targets import targets
from prefect_augment.schema import ClassPlan, DatasetInfo
from prefect_augment.shards.staged import iter_shards
from prefect_augment.storage import Store


def object_classes(info: DatasetInfo, balance: Balance, store: Store) -> tuple[ClassPlan, ...]:
    """Images of each class to copy; ``note`` has the boxes before, wanted and expected.

    Targets are in boxes of the training part. ParameterError if there are no boxes, or ``by`` is set.
    """
    if balance.by:
        raise ParameterError(
            "balance.by divides records into cells, which balance.unit 'object' cannot; leave one of them out."
        )
    n_images, n_boxes = _count_boxes(info, store)
    boxes = Counter[str]()
    for of_class in n_boxes.values():
        boxes.update(of_class)
    wanted = targets(dict(boxes), balance)
    expected = dict(boxes)
    copies = dict.fromkeys(n_images, 0)
    for name in sorted(boxes, key=lambda name: (boxes[name], name)):
        boxes_in_images = n_boxes.get(name, Counter())
        missing = wanted[name] - expected[name]
        if missing <= 0 or not boxes_in_images[name]:
            continue
        copies[name] = math.ceil(missing * n_images[name] / boxes_in_images[name])
        for other, n in boxes_in_images.items():
            expected[other] += round(copies[name] * n / n_images[name])
    return tuple(
        ClassPlan(
            name=name,
            label=name,
            n_real=n,
            target=n + copies[name],
            n_synthetic=0,
            n_classic=copies[name],
            compared=name in info.compared,
            note=f"{boxes[name]:,} boxes, {wanted.get(name, 0):,} wanted, about {expected.get(name, 0):,} with "
            f"copies of {copies[name]:,} images",
        )
        for name, n in sorted(n_images.items(), key=lambda item: (-boxes[item[0]], item[0]))
    )


def _count_boxes(info: DatasetInfo, store: Store) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Images of each class, and the boxes of each class in these images."""
    n_images = Counter[str]()
    n_boxes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    shards = [shard for shard in info.shards if shard.split in ("training", "validation")]
    for table in iter_shards(store, shards):
        image = info.image.column if info.image else ""
        if not ImageTargets.of(table.schema, image).has_objects:
            break
        labels = label_text(table[info.label]).to_pylist()
        for label, objects in zip(labels, table[OBJECTS].to_pylist(), strict=True):
            n_images[label] += 1
            n_boxes[label].update(str(c) for c in (objects or {}).get("category") or ())
    if not any(n_boxes.values()):
        raise ParameterError(
            "balance.unit is 'object', and the records have no boxes; add COCO, Pascal VOC or YOLO annotations, or a "
            "column objects (bbox, category)."
        )
    return n_images, dict(n_boxes)

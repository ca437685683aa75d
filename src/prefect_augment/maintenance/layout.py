"""The objects of a dataset's folder: their kinds, what names them, and how they are removed.

Foreign files are listed by ``gc`` and left.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from prefect_augment.schema import LatentUse, Manifest
from prefect_augment.storage import FOLDER as LEASES, Store, modified_at
from prefect_augment.text import strings_in

_DIGEST = "[0-9a-f]{12}"
_VERSIONED = rf"v\d{{8}}(-{_DIGEST})?"
_SHARD = rf"[^/]+-\d{{5}}-{_DIGEST}(\.[a-z0-9]+)+"
_KINDS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        # Leftovers of a killed put or probe.
        "temporary": r"((_[a-z]+|data)/([^/]+/)*)?\.(tmp|probe)-[0-9a-f]{32}.*",
        "card": r"README\.md|croissant\.json",
        "pointer": r"_workspace\.json",
        "manifest": r"_manifests/v\d{8}\.json",
        "shard": rf"data/{_SHARD}",
        "ledger": rf"_splits/{_VERSIONED}\.parquet",
        "report": rf"_reports/{_VERSIONED}/.+",
        "quarantine": rf"_quarantine/{_SHARD}",
        "look": rf"_looks/{_DIGEST}/\d{{8}}(\.proven)?\.json",
        "proposal": r"_proposals/[0-9a-f]+(\.decision(-\d+)?)?\.json",
        "lease": rf"{LEASES}/[^/]+\.json",
        "latents": rf"_({'|'.join(get_args(LatentUse))})/[^/]+/.+",
        "stage": r"_staging/[^/]+/[^/]+/.+",
    }.items()
}


def kind_of(path: str) -> str | None:
    """Return the kind of object at a path, or None for a foreign file.

    Examples
    --------
    >>> kind_of("data/train-real-00000-0123456789ab.parquet")
    'shard'
    >>> kind_of("data/my notes.txt") is None
    True
    """
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(path)), None)


def stage_of(path: str) -> str:
    """Return the stage's folder of a path below ``_staging``."""
    return "/".join(path.split("/")[:3])


def named_by(manifest: Manifest) -> set[str]:
    """Return every string in a manifest, so also paths in future fields."""
    return set(strings_in(manifest.model_dump(mode="json")))


def named_in(data: bytes) -> set[str]:
    """Return every string in a JSON object; none if it is not JSON."""
    try:
        return set(strings_in(json.loads(data)))
    except ValueError:
        return set()


# --- removing ---------------------------------------------------------------------------------


def removal_order(paths: Iterable[str], infos: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Order paths so that a run after a kill never trusts a receipt of removed objects.

    Receipts go before the objects that they describe, the newest first: a stage is younger than its inputs.
    """

    def rank(path: str) -> tuple[int, float, str]:
        if kind_of(path) not in ("stage", "latents", "lease") or not path.endswith(".json"):
            return 2, 0.0, path
        is_outcome = path.endswith(("/outcome.json", "/index.json"))
        return (0 if is_outcome else 1), -(modified_at(infos.get(path, {})) or 0.0), path

    return sorted(paths, key=rank)


def remove(store: Store, paths: Iterable[str], renew: Callable[[], None]) -> None:
    """Delete objects in this order; missing ones are fine."""
    for path in paths:
        renew()
        store.delete(path)

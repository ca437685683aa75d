"""Stages and their receipts, the only memory of a run.

A stage is named by everything that changes its bytes (:func:`~prefect_augment.params.keys.step_key`). Items
and outcome leave receipts, put only if absent, so a rerun, a second worker or a restart after a crash
finds what is done and does the rest.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from prefect_augment.errors import IntegrityError
from prefect_augment.schema import DatasetInfo, DatasetRef, Result, ShardInfo
from prefect_augment.storage.store import Store, sha256_hex

F = TypeVar("F", bound=Result)


class Stage:
    """The folder ``_staging/<name>/<key>`` of one stage."""

    def __init__(self, store: Store, name: str, key: str) -> None:
        self.store = store
        self.name = name
        self.key = key
        self.prefix = f"_staging/{name}/{key}"
        self.outcome_path = f"{self.prefix}/outcome.json"

    def outcome(self, kind: type[F]) -> F | None:
        """Return the stage's outcome, or None while it has none."""
        return read_result(self.store, self.outcome_path, kind)

    def run(self, kind: type[F], build: Callable[[], F]) -> F:
        """Return the stage's outcome; build it where there is none yet."""
        existing = self.outcome(kind)
        return existing if existing is not None else self.finish(build())

    def finish(self, outcome: F) -> F:
        """Write the outcome, or return the one that another worker wrote first."""
        return self._put(self.outcome_path, outcome)

    def info_of(
        self, source: DatasetInfo, shards: Sequence[ShardInfo], *, part: str, **more: Any
    ) -> DatasetInfo:
        """Return the info of staged records derived from ``source``, with its columns and classes.

        ``part`` is their name in ``part_counts``; ``more`` are other fields of DatasetInfo.
        """
        class_counts: Counter[str] = Counter()
        for shard in shards:
            class_counts.update(shard.class_counts)
        known: dict[str, Any] = {
            "stage": self.name,
            "key": self.key,
            "digest": sha256_hex("\n".join(shard.sha256 for shard in shards).encode()),
            "label": source.label,
            "label_type": source.label_type,
            "schema_digest": source.schema_digest,
            "columns": source.columns,
            "shards": tuple(shards),
            "part_counts": {part: dict(sorted(class_counts.items()))},
            "compared": source.compared,
            "group_column": source.group_column,
            "modality": source.modality,
            "image": source.image,
        }
        return DatasetInfo(**(known | more))

    def reference(self, info: DatasetInfo, class_counts: Mapping[str, int]) -> DatasetRef:
        """Return the reference to this stage's records, to hand on."""
        return DatasetRef(
            root=self.store.uri,
            path=self.outcome_path,
            key=self.key,
            digest=info.digest,
            label=info.label,
            n_records=sum(class_counts.values()),
            n_quarantined=info.n_quarantined,
            class_counts=dict(class_counts),
            modality=info.modality,
        )

    def item(self, name: str, kind: type[F], build: Callable[[], F]) -> F:
        """Return item ``name``'s receipt; build the item where there is none yet."""
        path = f"{self.prefix}/{name}.json"
        existing = read_result(self.store, path, kind)
        return existing if existing is not None else self._put(path, build())

    def _put(self, path: str, result: F) -> F:
        if self.store.put_if_absent(path, result.to_json()):
            return result
        winner = read_result(self.store, path, type(result))
        if winner is None:
            raise IntegrityError(
                f"{self.store.uri}/{path} was there and is gone; something else deletes staging."
            )
        return winner


def read_result(store: Store, path: str, kind: type[F]) -> F | None:
    """Return the result at ``path``, None if there is none; raises IntegrityError if it is damaged."""
    data = store.read_if_there(path)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        raise IntegrityError(
            f"{store.uri}/{path} is not a readable {kind.__name__}: {exc.errors()[0]['msg']}; "
            "delete it and run again, or use another destination."
        ) from exc

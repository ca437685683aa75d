"""Labels that people corrected when they decided on a version: kept with the decisions, read by every ingest.

A record is known by its content key, which does not depend on its label, so it keeps its part. Where several
decisions name a record, the last one holds.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from prefect_augment.params.keys import canonical_json
from prefect_augment.schema import DecisionRecord
from prefect_augment.storage import Store, read_result

FOLDER = "_proposals"
_DECISION = re.compile(rf"{FOLDER}/([0-9a-f]+)\.decision(?:-(\d+))?\.json")


@dataclass(frozen=True)
class Corrections:
    """The labels that hold, by content key and then by the label in the source."""

    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    decisions: tuple[DecisionRecord, ...] = ()  # in the order of time
    last: dict[tuple[str, str], DecisionRecord] = field(default_factory=dict)  # on key and label

    def __bool__(self) -> bool:
        return bool(self.labels)

    @property
    def digest(self) -> str:
        """A hash of the labels; it is an input of an ingest that has any."""
        return hashlib.sha256(canonical_json(self.labels)).hexdigest()[:24]


NO_CORRECTIONS = Corrections()


def read_corrections(store: Store) -> Corrections:
    """Return the corrections of all decisions on versions of this dataset."""
    labels: dict[str, dict[str, str]] = {}
    last: dict[tuple[str, str], DecisionRecord] = {}
    decisions = tuple(decision for _, decision in _decisions(store))
    for decision in decisions:
        for c in decision.corrections:
            known = labels.setdefault(c.key, {})
            # What was corrected before is the old label now.
            same = [source for source, label in known.items() if c.old == label]
            for source in (*same, c.old):
                known[source] = c.label
            last[c.key, c.label] = decision
    changed = {
        key: {source: label for source, label in known.items() if source != label}
        for key, known in labels.items()
    }
    return Corrections({k: known for k, known in changed.items() if known}, decisions, last)


def forget_corrections(
    store: Store, ids: Collection[str], find_keys: Callable[[], Collection[str]]
) -> None:
    """Remove the corrections of records, by ``aug_id`` or content key; the decisions stay."""
    decisions = list(_decisions(store))
    keys = find_keys() if decisions else ()
    for path, decision in decisions:
        left = tuple(c for c in decision.corrections if c.key not in keys and c.aug_id not in ids)
        if len(left) < len(decision.corrections):
            store.put(path, decision.model_copy(update={"corrections": left}).to_json())


def _decisions(store: Store) -> Iterator[tuple[str, DecisionRecord]]:
    """Yield the decisions that correct labels, with their paths, in the order of time."""
    entries = []
    for match in filter(None, map(_DECISION.fullmatch, store.list(FOLDER))):
        decision = read_result(store, match[0], DecisionRecord)
        if decision is not None and decision.corrections:
            entries.append((decision.decided_at, match[1], int(match[2] or 1), match[0], decision))
    for *_, path, decision in sorted(entries, key=lambda entry: entry[:3]):
        yield path, decision

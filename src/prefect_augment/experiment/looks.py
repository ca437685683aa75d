"""The looks at a dataset's hold-out, counted in its destination: ``_looks/<dataset>/<number>.json``.

A look is one reading that can lead to a decision. It is recorded before the hold-out is read, so a
killed run, a refused or rejected version and an evaluation of external records count. Its number is
claimed by the path, put only where there is none, so two runs at once take two numbers. The same key
again (a rerun, a retry) is the same look. A file has counts and keys, and nothing of any record: what
is new is the growth of the ledger's hold-out, which runs that were not published can only understate.

Versions of a dataset share a hold-out, and each compares new strategies on it. The chance of *any* false ``proven``
over all of them (the familywise error rate) stays at 5 %, whatever the number of looks and whatever their strategies
have in common: the chances that single looks spend sum to at most that (the union bound; alpha spending).
"""

import math

from scipy.special import zeta

from prefect_augment.errors import CommitConflictError, ParameterError
from prefect_augment.params.keys import canonical_json
from prefect_augment.schema import DatasetInfo, Look, Result
from prefect_augment.split.ledger_io import holdout_entries
from prefect_augment.storage import Store, list_versions, read_manifest, read_result, sha256_hex

_MAX_ATTEMPTS = 100


class _Recorded(Result):
    key: str  # of the reading
    look: Look
    n_first: int  # records or groups that the hold-out had held at the first look
    n_held: int  # and at this one
    previous: tuple[str, ...] = ()  # keys of the looks that are stored before it, in their order


class Looks:
    """The looks at the hold-out of one dataset, known by its label and columns.

    Another seed, source or hold-out in the same destination goes on with the count; another destination starts anew.
    """

    def __init__(self, store: Store, info: DatasetInfo) -> None:
        self.store, self.info = store, info
        self.dataset = (info.label, info.schema_digest)
        self.prefix = f"_looks/{sha256_hex(canonical_json(self.dataset))[:12]}"

    def take(self, key: str) -> Look:
        """Record the look with this key and return it, or the one that was recorded with it before.

        Call it before the hold-out is read. IntegrityError if a recorded look cannot be read;
        CommitConflictError if other runs keep taking the next number.
        """
        last = self._last()
        for _ in range(_MAX_ATTEMPTS):
            if last is not None and key in (*last.previous, last.key):
                return self._recorded(last, key).look
            mine = self._next(last, key)
            path = self._path(mine.look.number)
            self.store.put_if_absent(path, mine.to_json())
            # What stands there now counts, not the answer, as for manifests.
            last = read_result(self.store, path, _Recorded)
        raise CommitConflictError(
            f"other runs looked at the hold-out of {self.store.uri} first, {_MAX_ATTEMPTS} times in a row; run again."
        )

    def mark_proven(self, look: Look) -> None:
        """Record that a look ended with ``proven``, which returns what it spent to the next one."""
        self.store.put_if_absent(self._path(look.number, ".proven"), b"{}\n")

    def _next(self, last: _Recorded | None, key: str) -> _Recorded:
        n_holdout = sum(self.info.part_counts.get("holdout", {}).values())
        has_entries = self.info.ledger and not self.info.holdout_uri
        n_held, unit = (
            holdout_entries(self.store, self.info.ledger) if has_entries else (n_holdout, "record")
        )
        if last is not None:
            number, n_first, n_before = last.look.number + 1, last.n_first, last.n_held
        else:
            number, n_before = self._published()
            n_first, number = n_before or n_held, number + 1
        n_held = max(n_held, n_before)  # an erasure takes entries away
        returned = 0.0
        if last is not None and self.store.exists(self._path(last.look.number, ".proven")):
            returned = last.look.alpha
        alpha = spent_alpha(
            number, n_first=n_first, n_before=n_before, n_now=n_held, returned=returned
        )
        look = Look(
            number=number,
            n_holdout=n_holdout,
            n_new=n_held - n_before,
            unit=unit,
            level=1 - 2 * alpha,
        )
        previous = () if last is None else (*last.previous, last.key)
        return _Recorded(key=key, look=look, n_first=n_first, n_held=n_held, previous=previous)

    def _published(self) -> tuple[int, int]:
        """Looks of versions that were published before looks were counted, and the hold-out's size then.

        One for every verdict on hold-out records, and one for every version that was removed since.
        """
        versions = list_versions(self.store)
        if not versions:
            return 0, 0
        manifests = [read_manifest(self.store, version) for version in versions]
        newest = manifests[-1]
        if (newest.label, newest.source_schema) != self.dataset:
            return 0, 0
        # A version that was rolled back to, or that lacks erased records, has a previous one's verdict.
        verdicts = [m.verdict for m in manifests if m.verdict and m.verdict.n_holdout]
        n = len({v.to_json() for v in verdicts}) + versions[-1] - len(versions)
        n = max(n, *(v.look.number for v in verdicts if v.look), 0)  # of a copy without the looks
        if newest.ledger and not newest.holdout_uri:
            return n, holdout_entries(self.store, newest.ledger.path)[0] if n else 0
        return n, max((v.n_holdout for v in verdicts), default=0)

    def _path(self, number: int, what: str = "") -> str:
        return f"{self.prefix}/{number:08d}{what}.json"

    def _last(self) -> _Recorded | None:
        """The newest look; the listing may lack the very newest, whose number is then taken."""
        numbers = [
            name.removesuffix(".json")
            for name in (path.rpartition("/")[2] for path in self.store.list(self.prefix))
            if not name.endswith(".proven.json")
        ]
        if not numbers:
            return None
        return read_result(self.store, self._path(int(max(numbers))), _Recorded)

    def _recorded(self, last: _Recorded, key: str) -> _Recorded:
        if key == last.key:
            return last
        number = last.look.number - len(last.previous) + last.previous.index(key)
        recorded = read_result(self.store, self._path(number), _Recorded)
        assert recorded is not None
        return recorded


#: The first look spends as much as a single 95 % interval does, so a dataset of one version pays nothing.
FIRST = 0.025
# Of the rest, what looks get for being made, and what they get for records that arrived since.
_REPEATED, _ARRIVED = 0.015, 0.010
# Tian & Ramdas 2021 take this power for their spending sequences. Slower ones have more after hundreds
# of looks, faster ones at the second; at the twentieth this one has most of 1.2, 1.6 and 2.
_POWER = 1.6


def spent_alpha(
    number: int, *, n_first: int, n_before: int, n_now: int, returned: float = 0.0
) -> float:
    """Chance of a false ``proven`` that a look may spend, in (0, 0.025]: one side of its deciding interval.

    A look at the same records again gets a share of 1.5 % that falls with its ``number``, which is 1 for the first.
    Records that arrived since the look before bring a part of another 1 % with them, by the size of all that the
    hold-out has held (alpha spending by information, not by time): ``n_first`` at the first look, ``n_before`` at the
    one before, ``n_now`` now. The look after one that was ``proven`` also gets what that one spent (``returned``, the
    fallback procedure), and never more than the first. Over any number of looks without ``proven`` the values sum to
    less than 0.05. ParameterError if ``number`` is below 1, or the counts fall.

    Lan & DeMets 1983, "Discrete sequential boundaries for clinical trials" (spending by information).
    Wiens & Dmitrienko 2005, "The fallback procedure for evaluating a single family of hypotheses".
    Tian & Ramdas 2021, "Online control of the familywise error rate", section 3 (alpha spending and
    online fallback; both hold under any dependence).

    Examples
    --------
    >>> spent_alpha(1, n_first=1000, n_before=0, n_now=1000)
    0.025
    >>> round(spent_alpha(2, n_first=1000, n_before=1000, n_now=2000), 5)
    0.00678
    """
    if number < 1 or not 0 <= n_before <= n_now:
        raise ParameterError(
            f"look {number} at a hold-out that had {n_before} records and has {n_now}: looks count from 1, and "
            "records that left still count."
        )
    if number == 1:
        return FIRST
    first, before, now = (max(1, n) for n in (min(n_first, n_before), n_before, n_now))
    repeated = _REPEATED * number**-_POWER / (float(zeta(_POWER)) - 1)
    arrived = _ARRIVED * (math.sqrt(first / before) - math.sqrt(first / now))
    return float(min(FIRST, repeated + arrived + returned))

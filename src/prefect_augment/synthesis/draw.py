"""Records of a model in the source's columns, with the seeds that make them again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.genmodels.base import GenerativeModel
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.params.keys import canonical_json
from prefect_augment.synthesis.model_store import Encoder
from prefect_augment.synthesis.rejection import Keys, Rules, draw_kept

__all__ = ["candidate_seeds", "draw_batch", "draw_by_rules", "micro_batch", "records_of"]


def candidate_seeds(
    run_seed: int, stratum: str, start: int, n: int, given: Mapping[str, Any] | None = None
) -> NDArray[np.int64]:
    """Return the seeds of a stratum's candidates with ordinals ``start`` to ``start + n - 1``.

    An ordinal's seed depends on nothing else, so that more candidates extend the ones there are.

    Parameters
    ----------
    run_seed : int
        Seed of the run.
    stratum : str
        The stratum's name.
    start, n : int
        The ordinals.
    given : mapping, optional
        Column values as JSON: records with others are others, so their seeds are too.

    Returns
    -------
    ndarray of int64, shape (n,)
        All distinct.

    Examples
    --------
    >>> bool((candidate_seeds(7, "sick", 0, 5)[3:] == candidate_seeds(7, "sick", 3, 2)).all())
    True
    """
    named = ["candidate", run_seed, stratum, *([dict(given)] if given else [])]
    key = hashlib.blake2b(canonical_json(named), digest_size=8).digest()
    return seeds_from(int.from_bytes(key, "little"), start, n)


def draw_batch(
    fitted: GenerativeModel,
    encoder: Encoder,
    digest: str,
    batch: Sequence[tuple[str, int, int]],
    seed: int,
) -> pa.Table:
    """Return the records of a batch, drawn in whole micro-batches of one stratum each.

    A micro-batch is always the same ordinals of its stratum, so that a record's bits do not depend
    on how many were asked for; what lies beyond the request is drawn and dropped, in the place of
    padding.

    Parameters
    ----------
    fitted : GenerativeModel
    encoder : Encoder
        The model's.
    digest : str
        The checkpoint's.
    batch : sequence of (str, int, int)
        Stratum, first ordinal, number of records.
    seed : int
        The run's.

    Returns
    -------
    pyarrow.Table
        The source's columns, then aug_id, aug_model, aug_seed, aug_stratum and aug_ordinal.
    """
    index = {name: k for k, name in enumerate(encoder.strata)}
    size = micro_batch(fitted)
    whole = [
        (name, start - start % size, -(-(start + n) // size) * size) for name, start, n in batch
    ]
    seeds = np.concatenate([candidate_seeds(seed, name, lo, hi - lo) for name, lo, hi in whole])
    codes = np.concatenate([np.full(hi - lo, index[name]) for name, lo, hi in whole])
    ordinals = np.concatenate([np.arange(lo, hi) for _, lo, hi in whole])
    wanted = np.concatenate(
        [
            (np.arange(lo, hi) >= start) & (np.arange(lo, hi) < start + n)
            for (_, start, n), (_, lo, hi) in zip(batch, whole, strict=True)
        ]
    )
    drawn = fitted.sample(codes.astype(np.int64), seeds=seeds)[wanted]
    strata = [name for name, _, n in batch for _ in range(n)]
    return records_of(drawn, encoder, digest, strata, seeds[wanted], ordinals[wanted])


def records_of(
    drawn: NDArray[Any],
    encoder: Encoder,
    digest: str,
    strata: Sequence[str],
    seeds: NDArray[np.int64],
    ordinals: NDArray[np.int64],
) -> pa.Table:
    """Return drawn records in the source's columns with their lineage."""
    ids = derived_ids("synthetic", digest, list(strata), seeds.tolist())
    if isinstance(encoder, ImageEncoder):
        table = encoder.decode(drawn, strata=strata, aug_ids=ids.to_pylist())
    else:
        table = encoder.decode(drawn, strata=strata, ordinals=ordinals, aug_ids=ids.to_pylist())
    lineage = {
        "aug_id": ids,
        "aug_model": pa.array([digest] * len(strata), pa.string()),
        "aug_seed": pa.array(seeds, pa.int64()),
        "aug_stratum": pa.array(list(strata), pa.string()),
        "aug_ordinal": pa.array(ordinals, pa.int64()),
    }
    for name, column in lineage.items():
        table = table.append_column(name, column)
    return table


def micro_batch(fitted: GenerativeModel) -> int:
    """Return how many records the model computes at once, in places that are part of their bits."""
    return int(getattr(fitted, "micro_batch", 1))


def draw_by_rules(
    fitted: GenerativeModel,
    encoder: TableEncoder,
    digest: str,
    batch: Sequence[tuple[str, int, int]],
    seed: int,
    rules: Rules,
    taken: Keys,
) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
    """Return the records of a batch that keep the rules, and how many draws it took.

    Parameters
    ----------
    fitted, encoder, digest, batch, seed
        As for :func:`draw_batch`; a stratum's first ordinal is where to begin to look.
    rules : Rules
    taken : list of set
        From :meth:`.Rules.taken`; what is kept is added.

    Returns
    -------
    table : pyarrow.Table
        As from :func:`draw_batch`.
    n_draws : dict of str to int
        Ordinals gone through per stratum.
    passed : dict of str to int
        See :class:`.Kept`.

    Raises
    ------
    ParameterError
        If too few draws keep the rules.
    """
    made, n_draws, passed = [], {}, Counter[str]()
    for name, start, n in batch:
        seeds_of = partial(_seeds_of, seed, name, rules.said)
        kept = draw_kept(
            fitted, encoder, rules, stratum=name, start=start, n=n, seeds_of=seeds_of, taken=taken
        )
        made.append(records_of(kept.X, encoder, digest, [name] * n, kept.seeds, kept.ordinals))
        n_draws[name] = kept.n_draws
        passed.update(kept.passed)
    return pa.concat_tables(made), n_draws, dict(passed)


def _seeds_of(
    seed: int, stratum: str, given: Mapping[str, Any], start: int, n: int
) -> NDArray[np.int64]:
    return candidate_seeds(seed, stratum, start, n, given)

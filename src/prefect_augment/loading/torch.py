"""A published dataset as a stream for torch: every record once per epoch, or drawn by the recipe.

Row groups are read one after the other, so memory holds a few per worker, whatever the dataset's size.
:mod:`prefect_augment.loading.sampling_plan` divides records among workers. Needs torch, and Pillow for
images.
"""

import functools
import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from prefect_augment.array_types import Float, Int
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.augmentation.image_presets import PRESETS
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.evaluation.classifiers.mixing import LEAST_LOG_PRIOR, mix_batch, soft_targets
from prefect_augment.loading.sampling_plan import (
    Part,
    Pass,
    Reader,
    draw_rows,
    natural_weights,
    one_pass,
    real_only_weights,
    repeat_numbers,
    weighted_passes,
)
from prefect_augment.loading.torch_records import Records, RowMaker, class_codes
from prefect_augment.schema import Recipe, ShardInfo
from prefect_augment.shards.base import OpenShard, check_count, open_shard
from prefect_augment.shards.image_columns import main_image
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import Store

logger = logging.getLogger(__name__)


# Shards that a worker keeps open: their footers are not fetched again for every group.
OPEN_SHARDS = 16
# Threads that wait for footers.
OPENERS = 8
# Several passes of an epoch may draw the same record; every draw gets its own number.
DRAWS_PER_PASS, PASSES_PER_EPOCH = 1 << 32, 1 << 8
# Purpose of random numbers, the last word of a seed; not 0, which a seed ignores.
FOR_PASSES, FOR_ROWS, FOR_BLOCKS, FOR_BATCHES = 1, 2, 3, 4


class TorchDataset(IterableDataset):
    """Records ``(x, y)`` of one split; made by :meth:`~prefect_augment.loading.dataset.Dataset.to_torch`.

    Attributes
    ----------
    classes : tuple of str
        ``y`` is an index into it.
    features : tuple of str
        The columns of ``x``, in order.
    recipe : Recipe or None
        Applied while reading; None without ``recipe=True``. The training loop applies the next three.
    loss : str
        ``cross_entropy`` or ``balanced_softmax``.
    log_prior : Tensor of float32, shape (n_classes,), or None
        For the balanced softmax: add it to the logits in training only. Minus infinity for a class without
        records, or with soft targets a number that stands for it.
    soft_targets : bool
        Whether :meth:`collate` gives class shares: the recipe mixes records or smooths labels.
    thresholds : dict
        Estimator to class to multiplier of the predicted probability; empty if none was tuned. See
        :meth:`~prefect_augment.loading.dataset.Dataset.apply_thresholds`.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[ShardInfo],
        *,
        label: str,
        classes: Sequence[str],
        recipe: Recipe | None = None,
        columns: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epochs: int | None = None,
        channels: Literal[1, 3] | None = None,
        decode: bool = True,
        buffer_groups: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__()
        _check_numbers(epochs, channels, buffer_groups, rank, world_size)
        self.classes = tuple(classes)
        self.recipe = recipe
        self.transform = transform
        self.loss = recipe.loss if recipe else "cross_entropy"
        self.thresholds = recipe.thresholds if recipe else {}
        self._store = store
        self._shuffle = shuffle
        self._seed = seed
        self._epochs = epochs
        self._buffer_groups = buffer_groups
        self._digests = {shard.path: shard.sha256 for shard in shards} if verify else {}
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self._groups = _read_groups(
            store, shards, label, self.classes, weighted=recipe is not None, verify=verify
        )
        schema = self._groups.schema
        self.features = _features(schema, columns, label)
        self._policy = _policy(recipe, schema, self.features)
        self.soft_targets = recipe is not None and bool(recipe.mixing or recipe.smoothing)
        self._rows_of = RowMaker(
            schema, self.features, label, self.classes, channels, decode, transform
        )
        if self._policy is not None and not decode:
            raise ParameterError(
                "the recipe changes images, and decode=False gives their bytes; leave one of both out."
            )
        lineage = ["aug_id", "aug_weight"] if recipe else []
        images = self._rows_of.images  # read separately
        plain = [name for name in self.features if name not in images]
        self._columns = list(dict.fromkeys([*plain, label, *lineage]))
        self.log_prior = _log_prior(recipe, self._groups.n_of_class)
        if self.log_prior is not None and self.soft_targets:
            self.log_prior = self.log_prior.clamp(min=LEAST_LOG_PRIOR)
        # Epoch and progress of training; shared, so that persistent workers see changes.
        self._progress = torch.tensor([0.0, -1.0], dtype=torch.float64).share_memory_()

    # --- progress of training ---

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, from 0: each has its own order and draws, the same in every run.

        Without it every epoch is the first. With ``epochs`` it also sets the progress of training.
        """
        if epoch < 0:
            raise ParameterError(f"epoch is {epoch}; epochs count from 0.")
        unknown = self._epochs is None and self._progress[1] < 0
        if epoch and unknown and (self._finish < 1 or self._deferred):
            logger.warning(
                "The recipe draws %s in the first %.0f %% of the training only: give its length with "
                "to_torch(epochs=…), or its progress with set_progress(share). Until then they are drawn %s.",
                "without weights" if self._deferred else "synthetic records",
                100 * (self._deferred or self._finish),
                "by weight" if self._deferred else "throughout",
            )
        self._progress[0] = float(epoch)

    def set_progress(self, share: float) -> None:
        """Set the progress of training, a share in [0, 1], from the next epoch on.

        For training that is not counted in epochs; overrides ``epochs``.
        """
        if not 0.0 <= share <= 1.0:
            raise ParameterError(f"share is {share}; expected a number from 0 to 1.")
        self._progress[1] = share

    @property
    def _finish(self) -> float:
        """Share of training in which synthetic records are drawn; 1 if there are none."""
        if self.recipe is None or not self._groups.synthetic.any():
            return 1.0
        return self.recipe.real_only_finish

    @property
    def _deferred(self) -> float:
        """Share of training that draws without weights."""
        return 0.0 if self.recipe is None else self.recipe.deferred

    def _n_within(self, finish: float, epoch: int, *, unknown: int) -> int:
        """Number of the epoch's records, the first ones, within the share ``finish`` of the training.

        ``unknown``: the number where neither epochs nor progress say how far the training is.
        """
        n, share = self._groups.n_records, float(self._progress[1])
        if finish >= 1:
            return n
        if share >= 0:
            return n if share < finish else 0
        if self._epochs is None:
            return unknown
        return round(n * min(1.0, max(0.0, finish * self._epochs - epoch)))

    # --- records ---

    def __len__(self) -> int:
        """Records per epoch on this rank."""
        return Reader(*self._current_place()).share(self._groups.n_records)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Yield this worker's records of the epoch."""
        info = get_worker_info()
        reader = Reader(*self._current_place(), *((info.id, info.num_workers) if info else (0, 1)))
        store = self._store if info is None else _own(self._store)
        epoch = int(self._progress[0])
        passes = self._passes(epoch)
        with _OpenShards(store, self._digests) as shards:
            for one, parts in reader.parts(passes):
                n_groups = self._buffer_groups if self._mixes else 1
                for start in range(0, len(parts), n_groups):
                    yield from self._block(shards, one, parts[start : start + n_groups], epoch)

    @property
    def _mixes(self) -> bool:
        return self._shuffle or self.recipe is not None

    def _passes(self, epoch: int) -> list[Pass]:
        groups = self._groups
        if not self._mixes:
            return [one_pass(groups.n_rows, None)]
        rng = self._rng(epoch, FOR_PASSES)
        if self.recipe is None:
            return [one_pass(groups.n_rows, rng)]
        largest = groups.largest.max()
        if self._deferred:
            n = self._n_within(self._deferred, epoch, unknown=0)
            weights, factor = natural_weights(groups.weights, groups.n_of_class)
            most = (groups.largest * factor).max()
            passes = weighted_passes(n, weights.sum(axis=1), most, rng, factor=factor)
            rest, weights = groups.n_records - n, groups.weights.sum(axis=1)
            return passes + weighted_passes(rest, weights, largest, rng, number=len(passes))
        n = self._n_within(self._finish, epoch, unknown=groups.n_records)
        passes = weighted_passes(n, groups.weights.sum(axis=1), largest, rng)
        if n < groups.n_records:
            weights, factor = real_only_weights(groups.weights, groups.synthetic)
            largest = (groups.largest * np.maximum(1.0, factor)).max()
            passes += weighted_passes(
                groups.n_records - n,
                weights.sum(axis=1),
                largest,
                rng,
                factor=factor,
                number=len(passes),
            )
        return passes

    def _block(
        self, shards: "_OpenShards", one: Pass, parts: Sequence[Part], epoch: int
    ) -> Iterator[tuple[Any, int]]:
        """Read some groups and yield the drawn records, shuffled over all of them."""
        groups, chosen, repeats, before = [], [], [], 0
        for part in parts:
            group = int(one.order[part.place])
            path, number_there = self._groups.at(group)
            table, images = shards.at(path).read_apart(
                self._columns, self._rows_of.images, group=number_there
            )
            table = table.combine_chunks()
            rows = self._rows(table, one, part.place, group, epoch)
            own = slice(part.start, part.stop)
            chosen.append(before + rows[own])
            if self._policy is not None:
                repeats.append(repeat_numbers(rows)[own])
            groups.append(self._rows_of.prepare(table, images))
            before += table.num_rows
        records = self._rows_of.join(groups)
        order = np.arange(sum(map(len, chosen)))
        if self._mixes:
            rng = self._rng(epoch, one.number, parts[0].place, parts[0].start, FOR_BLOCKS)
            order = rng.permutation(order)
        picked = np.concatenate(chosen)[order].tolist()
        if self._policy is None:
            return records.at(picked)
        number = np.concatenate(repeats)[order]
        number += (epoch * PASSES_PER_EPOCH + one.number) * DRAWS_PER_PASS
        return self._changed(records, picked, number.tolist())

    def _changed(
        self, records: Records, rows: Sequence[int], numbers: Sequence[int]
    ) -> Iterator[tuple[Any, int]]:
        """Yield records with their images changed by the classic policy."""
        policy = self._policy
        assert policy is not None
        for row, number in zip(rows, numbers, strict=True):
            seed = record_seed(self._seed, records.columns["aug_id"][row], number)
            change = functools.partial(policy.apply, seed=seed)
            yield records.x(row, change), records.y[row]

    def _rows(self, table: pa.Table, one: Pass, place: int, group: int, epoch: int) -> Int:
        """Return the rows that a group gives in a pass."""
        if self.recipe is None:
            return np.arange(table.num_rows)
        weights = table["aug_weight"].to_numpy().astype(np.float64)
        if one.factor is not None:
            factor = one.factor[self._rows_of.codes(table)]
            is_synthetic = self._groups.synthetic[group] and not self._deferred
            weights = np.where(factor > 0, 0.0, weights) if is_synthetic else weights * factor
        rng = self._rng(epoch, one.number, group, FOR_ROWS)
        return draw_rows(one, place, weights, rng)

    # --- batches ---

    def collate(self, records: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
        """One batch as the recipe mixes it, for ``DataLoader(..., collate_fn=stream.collate)``.

        Parameters
        ----------
        records : sequence of (x, y)
            What the stream yields, ``transform`` applied; images of one size.

        Returns
        -------
        x
            As torch's ``default_collate`` stacks it; of images some are mixed with another of the batch.
        y : Tensor
            int64 of shape (n,) where the recipe neither mixes nor smooths; else class shares, float32 of
            shape (n, n_classes), which sum to one. ``cross_entropy`` takes both.

        Notes
        -----
        Seed, epoch and the batch's own values decide, and neither the worker nor the order of batches.
        See :func:`~prefect_augment.evaluation.classifiers.mixing.mix_batch`: the comparison mixed so.
        """
        x, y = default_collate([(x, y) for x, y in records])
        recipe = self.recipe
        if recipe is None or not self.soft_targets:
            return x, y
        smoothing = torch.tensor([recipe.smoothing.get(name, 0.0) for name in self.classes])
        targets = soft_targets(y, torch.from_numpy(self._groups.n_of_class > 0), smoothing)
        if not recipe.mixing:
            return x, targets
        images = x[self._rows_of.main] if isinstance(x, dict) else x
        content = zlib.crc32(images.numpy().tobytes())
        words = self._rng(int(self._progress[0]), content, FOR_BATCHES)
        rng = torch.Generator().manual_seed(int(words.integers(2**63)))
        mixed, targets = mix_batch(
            images, y, targets, rng, mixing=recipe.mixing, prob=recipe.mixing_prob
        )
        return ({**x, self._rows_of.main: mixed} if isinstance(x, dict) else mixed), targets

    def _rng(self, *words: int) -> np.random.Generator:
        return np.random.default_rng((self._seed % 2**64, *words))

    def _current_place(self) -> tuple[int, int]:
        """Return rank and number of ranks: as given, else of torch.distributed, else as pickled."""
        if self._place is not None:
            return self._place
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group.
        return {**self.__dict__, "_place": self._current_place()}


# --- requested content ------------------------------------------------------------------------


def _check_numbers(
    epochs: int | None,
    channels: int | None,
    buffer_groups: int,
    rank: int | None,
    world_size: int | None,
) -> None:
    if (rank is None) != (world_size is None):
        raise ParameterError("rank and world_size belong together; give both or neither.")
    if rank is not None and world_size is not None and not 0 <= rank < world_size:
        raise ParameterError(f"rank is {rank}; expected 0 to {world_size - 1} (world_size - 1).")
    if channels not in (None, 1, 3):
        raise ParameterError(f"channels is {channels}; expected 1, 3 or None.")
    for name, value in (("epochs", epochs), ("buffer_groups", buffer_groups)):
        if value is not None and value < 1:
            raise ParameterError(f"{name} is {value}; expected at least 1.")


def _features(schema: pa.Schema, columns: Sequence[str] | None, label: str) -> tuple[str, ...]:
    """Return the columns of ``x``: as requested, else the image, else all but label and lineage."""
    if columns is None:
        image = main_image(schema)
        names = [n for n in schema.names if n not in LINEAGE.names and n != label]
        return (image,) if image else tuple(names)
    unknown = [name for name in columns if name not in schema.names]
    if unknown:
        raise SchemaError(f"there is no column {', '.join(map(repr, unknown))} in the dataset.")
    return tuple(columns)


def _policy(
    recipe: Recipe | None, schema: pa.Schema, features: Sequence[str]
) -> ImagePolicy | None:
    """Return the recipe's classic policy if it has one and the image is read."""
    image = main_image(schema)
    if recipe is None or not (recipe.classic_policy or recipe.mixing) or image not in features:
        return None
    beside = [f for f in features if f != image and pa.types.is_nested(schema.field(f).type)]
    if beside:
        raise ParameterError(
            f"the recipe moves the image and would leave {', '.join(map(repr, beside))} where they were; leave them "
            "out of columns, or read with recipe=False and change both yourself."
        )
    if not recipe.classic_policy:
        return None
    if not recipe.classic_config and recipe.classic_policy not in PRESETS:
        raise ParameterError(
            f"the recipe's classic policy {recipe.classic_policy!r} is not one of this release's "
            f"({', '.join(PRESETS)}); upgrade prefect-augment, or read with recipe=False."
        )
    if recipe.classic_config:
        policy = ImagePolicy.from_config({**recipe.classic_config, "prob": recipe.classic_prob})
    else:
        policy = ImagePolicy(PRESETS[recipe.classic_policy], recipe.classic_prob)
    policy.check()
    return policy


def _log_prior(recipe: Recipe | None, n_of_class: Int) -> Tensor | None:
    """Return the logarithm of each class's share of the records, to the power of the strategy's amount."""
    if recipe is None or recipe.loss != "balanced_softmax":
        return None
    n = n_of_class.astype(np.float64)
    prior = np.where(n > 0, n**recipe.strategy.amount, 0.0)
    log_prior = np.full(len(n), -np.inf)
    np.log(prior / prior.sum(), out=log_prior, where=prior > 0)
    return torch.from_numpy(log_prior.astype(np.float32))


# --- groups of records ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """All groups of records, known before records are read."""

    schema: pa.Schema  # of all shards
    paths: tuple[str, ...]  # of the shards
    shard: Int  # (n_groups,) place in paths
    number: Int  # (n_groups,) place in the shard
    n_rows: Int  # (n_groups,)
    synthetic: NDArray[np.bool_]  # (n_groups,)
    weights: (
        Float  # (n_groups, n_classes) sums of aug_weight; no columns if nothing is drawn by weight
    )
    largest: Float  # (n_classes,) largest aug_weight
    n_of_class: Int  # (n_classes,) records

    @property
    def n_records(self) -> int:
        """Records in all groups."""
        return int(self.n_rows.sum())

    def at(self, group: int) -> tuple[str, int]:
        """Return the shard's path, and the group's place in it."""
        return self.paths[self.shard[group]], int(self.number[group])


def _read_groups(
    store: Store,
    shards: Sequence[ShardInfo],
    label: str,
    classes: Sequence[str],
    *,
    weighted: bool,
    verify: bool,
) -> _Groups:
    """Read every shard's groups once, and their weights if records are drawn by weight."""
    if not shards:
        raise ParameterError("there is no record to read: the version has none of these origins.")

    def read_shard(shard: ShardInfo) -> tuple[pa.Schema, tuple[int, ...], Float, Float]:
        with open_shard(store, shard.path, sha256=shard.sha256 if verify else "") as opened:
            n = opened.group_rows
            check_count(store, shard, sum(n))
            sums = np.zeros((len(n), len(classes) if weighted else 0))
            largest = np.zeros(sums.shape[1])
            for g in range(len(n) if weighted else 0):
                table = opened.read([label, "aug_weight"], groups=[g])
                weights = table["aug_weight"].to_numpy().astype(np.float64)
                codes = class_codes(table[label], classes)
                sums[g] = np.bincount(codes, weights, minlength=len(classes))
                np.maximum.at(largest, codes, weights)
            return opened.schema, n, sums, largest

    with ThreadPoolExecutor(OPENERS) as pool:
        read = list(pool.map(read_shard, shards))
    n_groups = [len(n) for _, n, _, _ in read]
    return _Groups(
        schema=read[0][0],
        paths=tuple(s.path for s in shards),
        shard=np.repeat(np.arange(len(shards)), n_groups),
        number=np.concatenate([np.arange(n) for n in n_groups]),
        n_rows=np.array([rows for _, n, _, _ in read for rows in n], dtype=np.int64),
        synthetic=np.repeat([s.origin == "synthetic" for s in shards], n_groups),
        weights=np.concatenate([sums for _, _, sums, _ in read]),
        largest=np.max([largest for _, _, _, largest in read], axis=0),
        n_of_class=np.array(
            [sum(s.class_counts.get(name, 0) for s in shards) for name in classes], dtype=np.int64
        ),
    )


class _OpenShards:
    """The recently used shards that one reader has open; digests are checked if given."""

    def __init__(self, store: Store, digests: Mapping[str, str]) -> None:
        self._store = store
        self._digests = digests
        self._open: OrderedDict[str, OpenShard] = OrderedDict()

    def at(self, path: str) -> OpenShard:
        if path not in self._open:
            self._open[path] = open_shard(self._store, path, sha256=self._digests.get(path, ""))
        self._open.move_to_end(path)
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return self._open[path]

    def __enter__(self) -> "_OpenShards":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for shard in self._open.values():
            shard.close()


def _own(store: Store) -> Store:
    """Return the store with connections of this process: a parent's do not survive a fork."""
    if store.is_local or not store.fs.async_impl:
        return store
    fs = type(store.fs)(
        *store.fs.storage_args, **{**store.fs.storage_options, "skip_instance_cache": True}
    )
    return Store(uri=store.uri, fs=fs, root=store.root)

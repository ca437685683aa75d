"""A published dataset as a stream for torch: every record once per epoch, or drawn by the recipe.

Row groups are read one after the other, so memory holds a few per worker, whatever the dataset's size.
:mod:`prefect_augment.loading.sampling_plan` divides records among workers. Needs torch and Pillow.
"""

import functools
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from prefect_augment.array_types import Int
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.augmentation.image_presets import PRESETS
from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.evaluation.classifiers.batch_transforms import (
    LEAST_LOG_PRIOR,
    mix_batch,
    soft_targets,
)
from prefect_augment.loading.sampling_plan import (
    Part,
    Pass,
    Reader,
    draw_rows,
    natural_weights,
    one_pass,
    real_only_weights,
    weighted_passes,
)
from prefect_augment.loading.torch_records import OpenShards, RowMaker, read_groups
from prefect_augment.schema import Recipe, ShardInfo
from prefect_augment.shards.image_columns import main_image
from prefect_augment.shards.parquet import LINEAGE
from prefect_augment.storage import Store
from prefect_augment.storage.keys import ranks_within

logger = logging.getLogger(__name__)


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
        if (rank is None) != (world_size is None):
            raise ParameterError("rank and world_size belong together; give both or neither.")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ParameterError(
                f"rank is {rank}; expected 0 to {world_size - 1} (world_size - 1)."
            )
        if channels not in (None, 1, 3):
            raise ParameterError(f"channels is {channels}; expected 1, 3 or None.")
        for name, value in (("epochs", epochs), ("buffer_groups", buffer_groups)):
            if value is not None and value < 1:
                raise ParameterError(f"{name} is {value}; expected at least 1.")
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
        self._groups = read_groups(
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
        with closing(OpenShards(store, self._digests)) as shards:
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
        if n == groups.n_records:
            return passes
        weights, factor = real_only_weights(groups.weights, groups.synthetic)
        largest = (groups.largest * np.maximum(1.0, factor)).max()
        rest, sums, number = groups.n_records - n, weights.sum(axis=1), len(passes)
        return passes + weighted_passes(rest, sums, largest, rng, factor=factor, number=number)

    def _block(
        self, shards: "OpenShards", one: Pass, parts: Sequence[Part], epoch: int
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
                repeats.append(ranks_within(rows)[own])
            groups.append(self._rows_of.prepare(table, images))
            before += table.num_rows
        records = self._rows_of.join(groups)
        order = np.arange(sum(map(len, chosen)))
        if self._mixes:
            rng = self._rng(epoch, one.number, parts[0].place, parts[0].start, FOR_BLOCKS)
            order = rng.permutation(order)
        picked = np.concatenate(chosen)[order].tolist()
        if self._policy is None:
            yield from records.at(picked)
            return
        numbers = np.concatenate(repeats)[order]
        numbers += (epoch * PASSES_PER_EPOCH + one.number) * DRAWS_PER_PASS
        for row, number in zip(picked, numbers.tolist(), strict=True):
            seed = record_seed(self._seed, records.columns["aug_id"][row], number)
            change = functools.partial(self._policy.apply, seed=seed)
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

    def collate(self, records: Sequence[tuple[Any, int]]) -> tuple[Any, Tensor]:
        """One batch as the recipe mixes it, for ``DataLoader(..., collate_fn=stream.collate)``.

        ``records`` are what the stream yields, with images of one size. ``x`` is as torch's ``default_collate`` stacks
        it; of images some are mixed with another of the batch. ``y`` is int64 of shape (n,) where the recipe neither
        mixes nor smooths; else class shares, float32 of shape (n, n_classes), which sum to one. ``cross_entropy``
        takes both. Seed, epoch and the batch's own values decide, and neither the worker nor the order of batches:
        see :func:`~prefect_augment.evaluation.classifiers.batch_transforms.mix_batch`, by which the comparison mixed.
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


def _own(store: Store) -> Store:
    """Return the store with connections of this process: a parent's do not survive a fork."""
    if store.is_local or not store.fs.async_impl:
        return store
    fs = type(store.fs)(
        *store.fs.storage_args, **{**store.fs.storage_options, "skip_instance_cache": True}
    )
    return Store(uri=store.uri, fs=fs, root=store.root)

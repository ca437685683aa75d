"""Base of all networks of tables: a model adds its network, its phase and how it draws.

:class:`TableNetwork` encodes records by :class:`.MixedSpace`, holds out a tenth of them, trains a
:class:`.TablePhase` with early stopping (:mod:`prefect_augment.nn.early_stopping`), and draws in
micro-batches of one size.
"""

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prefect_augment.array_types import Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData, TableSpec
from prefect_augment.genmodels.checks import check_not_empty, check_request
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.genmodels.network import N, Network, P, RecordNumbers
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace
from prefect_augment.genmodels.tables.training import (
    Encoded,
    Split,
    TablePhase,
    TableValidation,
    held_out_rows,
)
from prefect_augment.nn import loop
from prefect_augment.nn.budget import Calibration
from prefect_augment.nn.devices import choose_device
from prefect_augment.nn.early_stopping import N_STRETCHES, PATIENCE, train_with_early_stopping

BATCH_SIZE = {"cpu": 256, "cuda": 1024}
CONSTANT_STEP_SECONDS = 1e-3  # where no column varies and nothing is trained
# Largest training set, rarer classes whole. Ten minutes of a CPU see some millions of records, and each
# one takes 1.3 kB at ten columns.
MAX_TRAINING_RECORDS = 200_000

# Network, classes and random numbers to codes (n, n_choices) and scores (n, n_scores).
Draw = Callable[[N, Tensor, RecordNumbers], tuple[Tensor, Tensor]]


class TableNetwork(Network[P, N]):
    """A generative model of tables trained by gradient descent; see :class:`.Network`.

    Where no column varies, nothing is trained and there is no network.
    """

    spec: TableSpec
    spec_class = TableSpec
    micro_batches: ClassVar[dict[str, int]] = {"cpu": 256, "cuda": 4096}
    max_training_records: ClassVar[int] = MAX_TRAINING_RECORDS
    validation_class: ClassVar[type[TableValidation]] = TableValidation
    patience: ClassVar[int] = PATIENCE
    min_steps: ClassVar[int] = 400  # least number, which a tiny table needs
    _space: MixedSpace | None = None

    @abstractmethod
    def draw(self, network: N, y: Tensor, numbers: RecordNumbers) -> tuple[Tensor, Tensor]:
        """Return codes (n, n_choices) of int64 and scores (n, n_scores) of records of classes y."""

    @property
    def space(self) -> MixedSpace:
        """Choices and scores of the training records."""
        if self._space is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        return self._space

    @property
    def trains(self) -> bool:
        """Whether any column varies."""
        return self.space.n_varying > 0

    @property
    def network(self) -> N:
        """The trained network."""
        if self._network is None and self._space is not None:
            raise ParameterError("no column varies, so the model has no network to ask.")
        return super().network

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train on training records for at most ``ctx.steps`` steps.

        Raises EmptyClassError without records; ParameterError if the matrix does not have the
        spec's columns or there is no step to take; DivergedError if the loss is not finite.
        """
        split = self._prepare(data, ctx)
        if not self.trains:
            ctx.report(0, {})
            return
        phase = self._phase(split, ctx)
        validate = self.validation_class(self, phase, split) if len(split.held_out) else None
        steps = min(ctx.steps, self._useful_steps(len(split.trained), phase.batch_size))
        result = train_with_early_stopping(
            phase, replace(ctx, steps=steps), self.device, validate=validate, patience=self.patience
        )
        self._network, self._n_steps, self.stopped = result.network, result.steps, result.reason
        with self.device.settings():
            self.after_training(result.network, phase.records, ctx.seed)
        if result.steps < steps:
            ctx.report(result.steps, {})

    def calibrate(self, data: TableData, ctx: FitContext) -> Calibration:
        """Return how this machine would train; see :class:`.Calibrates`.

        Steps are too small for several threads, and one thread gives the same bits everywhere.
        """
        model = type(self)(self.params, self.spec)  # self stays unchanged
        split = model._prepare(data, ctx)
        device, n_trained = model.device, len(split.trained)
        seconds = fixed_seconds = 0.0
        if not ctx.steps:
            seconds = CONSTANT_STEP_SECONDS
            if model.trains:
                phase = model._phase(split, ctx)
                seconds = loop.seconds_per_step(phase, seed=ctx.seed, device=device)
                fixed_seconds = model._validation_seconds(phase, split)
        batch_size = ctx.batch_size or self.batch_size(n_trained)
        return Calibration(
            steps=ctx.steps,
            most_steps=self._useful_steps(n_trained, batch_size),
            batch_size=batch_size,
            device=device.name,
            precision=device.precision,
            threads=device.threads,
            seconds_per_step=seconds,
            fixed_seconds=fixed_seconds,
        )

    def batch_size(self, n_records: int) -> int:
        """Return the default records per step."""
        return BATCH_SIZE[self.device.name]

    def _validation_seconds(self, phase: TablePhase, split: Split) -> float:
        """Seconds of all validations of a training, measured by one of them."""
        if not len(split.held_out):
            return 0.0
        validate = self.validation_class(self, phase, split)
        started = time.perf_counter()
        with self.device.settings():
            validate(phase.network)
        return N_STRETCHES * (time.perf_counter() - started)

    def _useful_steps(self, n_records: int, batch_size: int) -> int:
        """Steps beyond which the network memorises records."""
        return max(self.min_steps, -(-self.params.epochs * n_records // batch_size))

    def _prepare(self, data: TableData, ctx: FitContext) -> Split:
        """Choose the device, fit the space of all records, and hold some of them out."""
        check_not_empty(len(data.y))
        if data.X.shape != (len(data.y), self.spec.n_columns):
            raise ParameterError(
                f"expected a matrix of shape {(len(data.y), self.spec.n_columns)}, found "
                f"{data.X.shape}; encode the records with TableEncoder."
            )
        self.device = choose_device(ctx.device, threads=ctx.threads or 1, precision=ctx.precision)
        self.micro_batch = self.micro_batches[self.device.name]
        self._space = MixedSpace.fit(data, self.spec)
        held_out = held_out_rows(data.y, ctx.seed)
        trained = np.setdiff1d(np.arange(len(data.y)), held_out)
        return Split(data, trained, held_out, ctx.seed)

    def _phase(self, split: Split, ctx: FitContext) -> TablePhase:
        rows = split.trained
        records = Encoded.of(split.data.X[rows], split.data.y[rows], self.space, self.device)
        batch_size = ctx.batch_size or self.batch_size(len(rows))
        return self.phase_class(self.initialised(ctx.seed), records, self.params, batch_size)

    def sample(self, conditions: Int, *, seeds: Int) -> Float:
        """Draw one record per condition; see :meth:`.GenerativeModel.sample`.

        Micro-batches have one size, the last one padded, and each is computed on one thread.
        """
        return self.sampled(conditions, seeds, self.draw)

    def sampled(self, conditions: Int, seeds: Int, draw: Draw[N]) -> Float:
        """Draw like :meth:`sample` with another ``draw`` function."""
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        space = self.space
        check_request(conditions, seeds, self.spec.classes)
        if not self.trains:
            empty = np.empty((len(conditions), 0))
            keys = record_keys(seeds)
            return space.decode(empty.astype(np.int64), empty, y=conditions, keys=keys, counter=0)
        return self.drawn(self.network, conditions, seeds, draw)

    def drawn(self, network: N, y: Int, seeds: Int, draw: Draw[N] | None = None) -> Float:
        """Draw records of classes ``y`` from a network, one micro-batch after the other."""
        draw = draw or self.draw
        X = np.empty((len(y), self.spec.n_columns))
        at = replace(self.device, threads=1)
        with at.settings(), torch.inference_mode(), at.autocast():
            for start in range(0, len(y), self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                n = len(y[rows])
                padded = np.pad(y[rows], (0, self.micro_batch - n))
                keys = record_keys(np.pad(seeds[rows], (0, self.micro_batch - n)))
                numbers = RecordNumbers(keys, at.torch)
                codes, scores = draw(network, torch.from_numpy(padded).to(at.torch), numbers)
                X[rows] = self.space.decode(
                    codes.cpu().numpy(),
                    scores.float().cpu().numpy(),
                    y=padded,
                    keys=keys,
                    counter=numbers.used,
                )[:n]
        return X

    def has_score(self, codes: Tensor) -> Tensor:
        """Scores that records of these codes have, (n, n_scores) of bool."""
        return torch.from_numpy(self.space.has_score(codes.cpu().numpy())).to(codes.device)

    def extra_state(self) -> tuple[Config, Arrays]:
        """The space, and why training ended."""
        space, arrays = self.space.state()
        return {"space": space, "stopped": self.stopped}, arrays

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        self._space = MixedSpace.from_state(config["space"], arrays, self.spec)
        self.stopped = config["stopped"]

"""Base of all networks of tables: a model adds its network, its losses and how it draws.

:class:`TableNetwork` encodes records by :class:`.MixedSpace`, holds out a tenth of them, trains a
:class:`.TablePhase` with early stopping (:mod:`prefect_augment.nn.early_stopping`), draws in
micro-batches of one size, and handles storage.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Float, Int
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData, TableSpec
from prefect_augment.genmodels.checks import check_request
from prefect_augment.genmodels.counter_rng import record_keys
from prefect_augment.genmodels.record_numbers import RecordNumbers
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
from prefect_augment.nn.devices import Device, choose_device
from prefect_augment.nn.early_stopping import N_STRETCHES, PATIENCE, train_with_early_stopping
from prefect_augment.params.base import Params

BATCH_SIZE = {"cpu": 256, "cuda": 1024}
# Records drawn at once; a record's place in the micro-batch affects its bits.
MICRO_BATCH = {"cpu": 256, "cuda": 4096}
CONSTANT_STEP_SECONDS = 1e-3  # where no column varies and nothing is trained
# Largest training set, rarer classes whole. Ten minutes of a CPU see some millions of records, and each
# one takes 1.3 kB at ten columns.
MAX_TRAINING_RECORDS = 200_000

P = TypeVar("P", bound=Params)
N = TypeVar("N", bound=nn.Module)

# Network, classes and random numbers to codes (n, n_choices) and scores (n, n_scores).
Draw = Callable[[N, Tensor, RecordNumbers], tuple[Tensor, Tensor]]


class TableNetwork(ABC, Generic[P, N]):
    """A generative model of tables trained by gradient descent; see :class:`.GenerativeModel`.

    ``params`` is of ``params_class`` and has ``epochs``, ``ema_fraction`` and what the phase reads.
    ``stopped`` says why training ended before its last step, if it did.
    """

    trained_in_steps: ClassVar[bool] = True
    max_training_records: ClassVar[int] = MAX_TRAINING_RECORDS
    params_class: ClassVar[type[Any]]
    patience: ClassVar[int] = PATIENCE
    min_steps: ClassVar[int] = 400  # least number, which a tiny table needs

    def __init__(self, params: P, spec: TableSpec) -> None:
        self.params = params
        self.spec = spec
        self.device = Device()
        self.micro_batch = MICRO_BATCH["cpu"]
        self.stopped = ""
        self._space: MixedSpace | None = None
        self._network: N | None = None  # None also where no column varies
        self._n_steps = 0

    # --- what a model defines ---

    @abstractmethod
    def new_network(self, space: MixedSpace) -> N:
        """Return an untrained network; at least one column varies."""

    @abstractmethod
    def new_phase(
        self, network: N, records: Encoded, space: MixedSpace, batch_size: int
    ) -> TablePhase:
        """Return how it is trained."""

    @abstractmethod
    def draw(self, network: N, y: Tensor, numbers: RecordNumbers) -> tuple[Tensor, Tensor]:
        """Return codes (n, n_choices) of int64 and scores (n, n_scores) of records of classes y."""

    def after_training(self, network: N, records: Encoded, seed: int) -> None:
        """Fit what drawing needs besides the weights, from the training records."""

    def batch_size(self, n_records: int, device: Device) -> int:
        """Return the default records per step."""
        return BATCH_SIZE[device.name]

    def extra_state(self) -> Arrays:
        """Return what :meth:`after_training` fitted."""
        return {}

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""

    # --- shared ---

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model; raises ParameterError for another model's params."""
        if not isinstance(params, cls.params_class):
            raise ParameterError(
                f"{cls.__name__} takes {cls.params_class.__name__}, not {type(params).__name__}."
            )
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Training steps taken."""
        return self._n_steps

    @property
    def space(self) -> MixedSpace:
        """Choices and scores of the training records."""
        if self._space is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        return self._space

    @property
    def network(self) -> N:
        """The trained network."""
        if self._network is None:
            why = "no column varies, so there is no network" if self._space else "it is not fitted"
            raise ParameterError(f"the model has no trained network: {why}.")
        return self._network

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train on training records for at most ``ctx.steps`` steps.

        Raises EmptyClassError without records; ParameterError if the matrix does not have the
        spec's columns or there is no step to take; DivergedError if the loss is not finite.
        """
        space, split = self._split(data, ctx.seed)
        self._space, self.device = space, self._device(ctx)
        self.micro_batch = MICRO_BATCH[self.device.name]
        if not _varies(space):
            ctx.report(0, {})
            return
        phase = self._phase(split, space, ctx)
        validate = self.new_validation(phase, split) if len(split.held_out) else None
        steps = min(ctx.steps, self._useful_steps(len(split.trained), phase.batch_size))
        result = train_with_early_stopping(
            phase,
            steps=steps,
            seed=ctx.seed,
            device=self.device,
            validate=validate,
            ema_fraction=getattr(self.params, "ema_fraction", 0.0),
            patience=self.patience,
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        network: Any = result.network
        self._network, self._n_steps, self.stopped = network, result.steps, result.reason
        with self.device.settings():
            self.after_training(network, phase.data, ctx.seed)
        if result.steps < steps:
            ctx.report(result.steps, {})

    def new_validation(self, phase: TablePhase, split: Split) -> TableValidation:
        """Return the validation for early stopping."""
        return TableValidation(self, phase, split)

    def calibrate(self, data: TableData, ctx: FitContext) -> Calibration:
        """Return how this machine would train; see :class:`.Calibrates`.

        Steps are too small for several threads, and one thread gives the same bits everywhere.
        """
        space, split = self._split(data, ctx.seed)
        device = self._device(ctx)
        seconds = validation_seconds = 0.0
        if not ctx.steps:
            seconds = CONSTANT_STEP_SECONDS
            if _varies(space):
                phase = self._phase(split, space, ctx)
                seconds = loop.seconds_per_step(phase, seed=ctx.seed, device=device)
                model = type(self)(self.params, self.spec)  # self stays unchanged
                model._space, model.device = space, device
                model.micro_batch = MICRO_BATCH[device.name]
                validation_seconds = model._validation_seconds(phase, split)
        batch_size = ctx.batch_size or self.batch_size(len(split.trained), device)
        return Calibration(
            steps=ctx.steps,
            most_steps=self._useful_steps(len(split.trained), batch_size),
            batch_size=batch_size,
            device=device.name,
            precision=device.precision,
            threads=device.threads,
            seconds_per_step=seconds,
            fixed_seconds=validation_seconds,
        )

    def _validation_seconds(self, phase: TablePhase, split: Split) -> float:
        """Seconds of all validations of a training, measured by one of them."""
        if not len(split.held_out):
            return 0.0
        validate = self.new_validation(phase, split)
        started = time.perf_counter()
        with self.device.settings():
            validate(phase.network)
        return N_STRETCHES * (time.perf_counter() - started)

    def _useful_steps(self, n_records: int, batch_size: int) -> int:
        """Steps beyond which the network memorises records."""
        epochs: int = getattr(self.params, "epochs", 1)
        return max(self.min_steps, -(-epochs * n_records // batch_size))

    def _split(self, data: TableData, seed: int) -> tuple[MixedSpace, Split]:
        """The space of all records, and which of them are held out."""
        if len(data.y) == 0:
            raise EmptyClassError(
                "there are 0 training records, so the model cannot be trained; give a larger source."
            )
        if data.X.shape != (len(data.y), self.spec.n_columns):
            raise ParameterError(
                f"expected a matrix of shape {(len(data.y), self.spec.n_columns)}, found "
                f"{data.X.shape}; encode the records with TableEncoder."
            )
        held_out = held_out_rows(data.y, seed)
        trained = np.setdiff1d(np.arange(len(data.y)), held_out)
        return MixedSpace.fit(data, self.spec), Split(data, trained, held_out, seed)

    def _device(self, ctx: FitContext) -> Device:
        return choose_device(ctx.device, threads=ctx.threads or 1, precision=ctx.precision)

    def _phase(self, split: Split, space: MixedSpace, ctx: FitContext) -> TablePhase:
        device, rows = self._device(ctx), split.trained
        network = self._new_network(space, ctx.seed).to(device.torch)
        batch_size = ctx.batch_size or self.batch_size(len(rows), device)
        records = Encoded.of(split.data.X[rows], split.data.y[rows], space, device)
        return self.new_phase(network, records, space, batch_size)

    def _new_network(self, space: MixedSpace, seed: int) -> N:
        # Initialisers use PyTorch's global generator: seed it, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.new_network(space)

    # --- sampling ---

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
        if not _varies(space):
            empty = np.empty((len(conditions), 0))
            keys = record_keys(seeds)
            return space.decode(empty.astype(np.int64), empty, y=conditions, keys=keys, counter=0)
        return self.drawn(self.network, conditions, seeds, draw)

    def drawn(
        self,
        network: N,
        y: Int,
        seeds: Int,
        draw: Draw[N] | None = None,
    ) -> Float:
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
                labels = torch.from_numpy(padded).to(at.torch)
                codes, scores = draw(network, labels, numbers)
                drawn = self.space.decode(
                    codes.cpu().numpy(),
                    scores.float().cpu().numpy(),
                    y=padded,
                    keys=numbers.keys,
                    counter=numbers.used,
                )
                X[rows] = drawn[:n]
        return X

    # --- to storage and back ---

    def state(self) -> tuple[Config, Arrays]:
        """Return params, spec and layout as JSON; weights, grids and shares as arrays."""
        if self._space is None:
            raise ParameterError("the model has not been fitted, so there is nothing to keep.")
        space, arrays = self._space.state()
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            "spec": self.spec.to_config(),
            "space": space,
            "precision": self.device.precision,
            "micro_batch": self.micro_batch,
            "n_steps": self._n_steps,
            "stopped": self.stopped,
        }
        if self._network is not None:
            arrays |= loop.named_arrays("network", self._network.state_dict())
        return config, arrays | self.extra_state()

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model of a state."""
        spec = TableSpec.from_config(config["spec"])
        model = cls.build(cls.params_class.from_stored(config["params"]), spec)
        model.device = choose_device(device, threads=1, precision=config["precision"])
        model.micro_batch, model._n_steps = config["micro_batch"], config["n_steps"]
        model.stopped = config["stopped"]
        model._space = MixedSpace.from_state(config["space"], arrays, spec)
        if _varies(model._space):
            network = model._new_network(model._space, 0)
            network.load_state_dict(loop.tensors("network", arrays))
            model._network = network.requires_grad_(False).eval().to(model.device.torch)
        model.load_extra_state(arrays)
        return model


def _varies(space: MixedSpace) -> bool:
    return bool(space.n_codes or space.n_scores)

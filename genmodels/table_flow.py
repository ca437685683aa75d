"""Flow matching for tables: choices first, one given the others, then scores along straight lines.

:class:`.table_mixed.MixedSpace` makes of a record codes ``c`` (categories, atoms, nulls) and normal
scores ``x``; p(c, x | y) = p(c | y) p(x | c, y), one network each:

- ``choices`` are learnt masked, as a discrete flow: of a record some codes are hidden, and the
  network gives the posterior of each hidden one from those that are seen, by cross-entropy
  (Hoogeboom et al. 2022, "Autoregressive Diffusion Models", equation 5; Campbell et al. 2024,
  "Generative Flows on Discrete State-Spaces", section 3). They are drawn one after the other, each
  from its posterior, so that what goes together stays together.
- ``scores`` are carried from noise to the record's along straight lines by the mean velocity
  E[x1 - x0 | x_t, t, c, y] (Lipman et al. 2023, equation 23 with sigma_min = 0), the codes given
  as they are: whether a value is null, zero or any other is known before it moves.

Classes are drawn with p ∝ n_k**q and one network serves all, so that a rare class borrows from the
others what they have in common. Training goes on for so many passes over the records at most, is
judged on a tenth of them held back, and ends when that no longer gains or records come back that lie
nearer to those trained on than the ones held back do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData, TableSpec
from prefect_augment.genmodels.counter_random import normal, record_keys, uniform
from prefect_augment.genmodels.flow_conditions import read_given
from prefect_augment.genmodels.table_flow_network import FlowNetwork, carried, draw_choices
from prefect_augment.genmodels.table_flow_training import (
    Encoded,
    FlowJudge,
    FlowPhase,
    held_back_rows,
)
from prefect_augment.genmodels.table_mixed import MixedSpace
from prefect_augment.params import FlowModel
from prefect_augment.training import loop
from prefect_augment.training.budget import Calibration
from prefect_augment.training.devices import Device, choose_device
from prefect_augment.training.stopping import train_watched

__all__ = ["TableFlow"]

BATCH_SIZE = {"cpu": 256, "cuda": 1024}
MICRO_BATCH = {
    "cpu": 256,
    "cuda": 4096,
}  # records drawn at once; the place in it is part of the bits
MIN_STEPS = 400  # of a run that the passes over the records limit: a tiny table needs some, too


class TableFlow:
    """One pair of networks for all classes; see the module.

    Parameters
    ----------
    params : FlowModel
        The wish.
    spec : TableSpec
        Columns and classes.
    """

    trained_in_steps: ClassVar[bool] = True

    def __init__(self, params: FlowModel, spec: TableSpec) -> None:
        self.params = params
        self.spec = spec
        self.device = Device()
        self.micro_batch = MICRO_BATCH["cpu"]
        self.stopped = ""  # why training ended before its last step
        self._space: MixedSpace | None = None
        self._network: FlowNetwork | None = None
        self._n_steps = 0

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model.

        Raises
        ------
        ParameterError
            If ``params`` are another model's.
        """
        if not isinstance(params, FlowModel):
            raise ParameterError(f"a table's flow takes FlowModel, not {type(params).__name__}.")
        return cls(params, spec)

    @property
    def n_steps(self) -> int:
        """Training steps taken."""
        return self._n_steps

    @property
    def space(self) -> MixedSpace:
        """Choices and scores of the records that the model is fitted on."""
        if self._space is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        return self._space

    # --- training ---

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train on fit records for at most ``ctx.steps`` steps.

        Raises
        ------
        EmptyClassError
            If there is no record.
        ParameterError
            If the matrix does not have the spec's columns, or there is no step to take.
        DivergedError
            If the loss is no longer a number.
        """
        space, trained, held_back = self._records(data, ctx.seed)
        phase, device = self._phase(data, trained, space, ctx)
        self._space, self.device = space, device
        self.micro_batch = MICRO_BATCH[device.name]
        judge = None
        if len(held_back) and (space.n_codes or space.n_scores):
            judge = FlowJudge(self, data, trained, held_back, ctx.seed)
        steps = min(ctx.steps, self._useful_steps(len(trained), phase.batch_size))
        found = train_watched(
            phase,
            steps=steps,
            seed=ctx.seed,
            device=device,
            judge=judge,
            ema_fraction=self.params.ema_fraction,
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        assert isinstance(found.network, FlowNetwork)
        self._network, self._n_steps, self.stopped = found.network, found.steps, found.reason
        if found.steps < steps:
            ctx.report(found.steps, {})

    def calibrate(self, data: TableData, ctx: FitContext) -> Calibration:
        """Return how this machine would train, as :class:`.Calibrates` has it.

        Steps are too small to be shared among threads, and one thread has the same bits everywhere.
        """
        space, trained, _ = self._records(data, ctx.seed)
        phase, device = self._phase(data, trained, space, ctx)
        seconds = 0.0
        if not ctx.steps:
            seconds = loop.seconds_per_step(phase, seed=ctx.seed, device=device)
        return Calibration(
            steps=ctx.steps,
            batch_size=phase.batch_size,
            device=device.name,
            precision=device.precision,
            threads=device.threads,
            seconds_per_step=seconds,
        )

    def _useful_steps(self, n_records: int, batch_size: int) -> int:
        """Return the steps beyond which records are learnt by heart."""
        return max(MIN_STEPS, -(-self.params.epochs * n_records // batch_size))

    def _records(
        self, data: TableData, seed: int
    ) -> tuple[MixedSpace, NDArray[np.int64], NDArray[np.int64]]:
        """Return the space of all records, the rows to train on, and those held back."""
        if len(data.y) == 0:
            raise EmptyClassError(
                "there are 0 fit records, so the model cannot be trained; give a larger source."
            )
        if data.X.shape != (len(data.y), self.spec.n_columns):
            raise ParameterError(
                f"expected a matrix of shape {(len(data.y), self.spec.n_columns)}, found "
                f"{data.X.shape}; encode the records with TableEncoder."
            )
        held_back = held_back_rows(data.y, seed)
        trained = np.setdiff1d(np.arange(len(data.y)), held_back)
        return MixedSpace.fit(data, self.spec), trained, held_back

    def _phase(
        self, data: TableData, rows: NDArray[np.int64], space: MixedSpace, ctx: FitContext
    ) -> tuple[FlowPhase, Device]:
        device = choose_device(ctx.device, threads=ctx.threads or 1, precision=ctx.precision)
        network = self._new_network(space, ctx.seed).to(device.torch)
        batch_size = ctx.batch_size or BATCH_SIZE[device.name]
        encoded = Encoded.of(data, rows, space, device)
        return FlowPhase(network, encoded, self.params, batch_size), device

    def _new_network(self, space: MixedSpace, seed: int) -> FlowNetwork:
        # Initialisers draw from PyTorch's global generator: set it, and put it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FlowNetwork(
                space.n_codes,
                space.n_scores,
                self.spec.n_classes,
                width=self.params.width,
                depth=self.params.depth,
            )

    # --- sampling ---

    def sample(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Draw one record per condition, as :class:`.GenerativeModel` has it.

        Micro-batches have one size, the last one is padded, and each is computed on one thread.

        Raises
        ------
        EmptyClassError
            If a condition is no class of the model.
        ParameterError
            If the model has not been fitted, or there is not one seed per condition.
        """
        network, conditions, seeds = self._checked(conditions, seeds)
        return self.drawn(network, conditions, seeds)

    def sample_given(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64], given: Mapping[int, float]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw records with given values, as :class:`.SamplesGiven` has it.

        Raises
        ------
        ParameterError
            If no fit record has a given value.
        """
        network, conditions, seeds = self._checked(conditions, seeds)
        wish = read_given(self.space, given)
        return wish.keep(self.drawn(network, conditions, seeds, wish.codes))

    def _checked(
        self, conditions: NDArray[np.int64], seeds: NDArray[np.int64]
    ) -> tuple[FlowNetwork, NDArray[np.int64], NDArray[np.int64]]:
        """Refuse what cannot be sampled."""
        conditions, seeds = np.asarray(conditions, np.int64), np.asarray(seeds, np.int64)
        if self._network is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        if conditions.shape != seeds.shape:
            raise ParameterError(
                f"{len(conditions)} conditions came with {len(seeds)} seeds; give one each."
            )
        if conditions.size and not 0 <= conditions.min() <= conditions.max() < self.spec.n_classes:
            raise EmptyClassError(
                f"conditions go from {conditions.min()} to {conditions.max()}, the model has "
                f"classes 0 to {self.spec.n_classes - 1}: {', '.join(self.spec.classes)}."
            )
        return self._network, conditions, seeds

    def drawn(
        self,
        network: FlowNetwork,
        y: NDArray[np.int64],
        seeds: NDArray[np.int64],
        given: Mapping[int, int] | None = None,
    ) -> NDArray[np.float64]:
        """Return records of classes ``y`` from a network, one micro-batch after the other.

        ``given`` are codes by choice that all of them have.
        """
        X = np.empty((len(y), self.spec.n_columns))
        at = replace(self.device, threads=1)
        with at.settings(), torch.inference_mode(), at.autocast():
            for start in range(0, len(y), self.micro_batch):
                rows = slice(start, start + self.micro_batch)
                n = len(y[rows])
                padding = (0, self.micro_batch - n)
                drawn = self._micro_batch(
                    network, np.pad(y[rows], padding), np.pad(seeds[rows], padding), given
                )
                X[rows] = drawn[:n]
        return X

    def _micro_batch(
        self,
        network: FlowNetwork,
        y: NDArray[np.int64],
        seeds: NDArray[np.int64],
        given: Mapping[int, int] | None,
    ) -> NDArray[np.float64]:
        keys, labels = record_keys(seeds), torch.from_numpy(y).to(self.device.torch)
        noise = torch.from_numpy(normal(keys, network.n_scores)).to(self.device.torch)
        counter = network.n_scores + network.n_scores % 2  # numbers that the noise has used
        n_choices = len(network.n_codes)
        draws = [uniform(keys, counter + i) for i in range(n_choices)]
        uniforms = torch.from_numpy(np.stack(draws, 1) if draws else np.empty((len(y), 0)))
        codes = draw_choices(network, labels, uniforms.to(self.device.torch), given)
        scores = noise
        if network.n_scores:
            known = network.seen(codes, labels)
            has_score = torch.from_numpy(self.space.has_score(codes.cpu().numpy()))
            scores = carried(
                network, known, noise, has_score.to(self.device.torch), self.params.sampler_steps
            )
        return self.space.decode(
            codes.cpu().numpy(), scores.cpu().numpy(), y=y, keys=keys, counter=counter + n_choices
        )

    # --- to storage and back ---

    def state(self) -> tuple[Config, Arrays]:
        """Return params, spec and layout as JSON; weights, grids and shares as arrays."""
        if self._network is None or self._space is None:
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
        return config, arrays | loop.named_arrays("network", self._network.state_dict())

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model whose state this is."""
        spec = TableSpec.from_config(config["spec"])
        model = cls.build(FlowModel(**config["params"]), spec)
        model.device = choose_device(device, threads=1, precision=config["precision"])
        model.micro_batch, model._n_steps = config["micro_batch"], config["n_steps"]
        model.stopped = config["stopped"]
        model._space = MixedSpace.from_state(config["space"], arrays, spec)
        network = model._new_network(model._space, 0)
        network.load_state_dict(loop.tensors("network", arrays))
        model._network = network.requires_grad_(False).eval().to(model.device.torch)
        return model

"""What networks of images and of tables share: how they are built, their phases of training, and storage.

A model is an :class:`.ImageNetwork` or a :class:`.TableNetwork` with its network, its phase and how
it draws.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Uint64
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config
from prefect_augment.genmodels.counter_rng import normal, uniform
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device, choose_device

P = TypeVar("P", bound=Any)
N = TypeVar("N", bound=nn.Module)


class Network(ABC, Generic[P, N]):
    """A generative model trained by gradient descent; see :class:`.GenerativeModel`.

    ``params`` is of ``params_class``. ``stopped`` says why training ended before its last step, if
    it did.
    """

    trained_in_steps: ClassVar[bool] = True
    params_class: ClassVar[type[Any]]
    spec_class: ClassVar[type[Any]]
    phase_class: ClassVar[Any]  # of network, records, params and batch size
    # Records drawn at once; a record's place in the micro-batch affects its bits.
    micro_batches: ClassVar[dict[str, int]]

    def __init__(self, params: P, spec: Any) -> None:
        self.params = params
        self.spec = spec
        self.device = Device()
        self.micro_batch = self.micro_batches["cpu"]
        self.stopped = ""
        self._network: N | None = None
        self._n_steps = 0

    @abstractmethod
    def new_network(self) -> N:
        """Return an untrained network."""

    def after_training(self, network: N, records: Any, seed: int) -> None:
        """Fit what drawing needs besides the weights, from the training records."""

    def extra_state(self) -> tuple[Config, Arrays]:
        """Return what else is stored: facts about the training, and what was fitted after it."""
        return {}, {}

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`, from the whole state and before the network is made."""

    @classmethod
    def build(cls, params: Any, spec: Any) -> Self:
        """Return an untrained model; raises ParameterError for unsuitable params or specs."""
        if not isinstance(params, cls.params_class):
            raise ParameterError(
                f"{cls.__name__} takes {cls.params_class.__name__}, not {type(params).__name__}."
            )
        return cls(params, spec)

    @property
    def trains(self) -> bool:
        """Whether the training records, once known, give a network anything to learn."""
        return True

    @property
    def n_steps(self) -> int:
        """Training steps taken."""
        return self._n_steps

    @property
    def network(self) -> N:
        """The trained network."""
        if self._network is None:
            raise ParameterError("the model has not been fitted; call fit, or load a checkpoint.")
        return self._network

    def initialised(self, seed: int) -> N:
        """Return an untrained network, on the device."""
        # Initialisers use PyTorch's global generator: seed it, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.new_network()
        return network.to(self.device.torch, memory_format=torch.channels_last)

    def state(self) -> tuple[Config, Arrays]:
        """Return params, spec and device settings as JSON, and the weights as arrays."""
        weights = loop.named_arrays("network", self.network.state_dict()) if self.trains else {}
        extra, arrays = self.extra_state()
        config: Config = {
            "params": self.params.model_dump(mode="json"),
            "spec": self.spec.to_config(),
            "precision": self.device.precision,
            "micro_batch": self.micro_batch,
            "n_steps": self._n_steps,
            **extra,
        }
        return config, weights | arrays

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model of a state, in the precision of its training."""
        spec = cls.spec_class.from_config(config["spec"])
        model = cls.build(cls.params_class.from_stored(config["params"]), spec)
        model.device = choose_device(device, threads=1, precision=config["precision"])
        model.micro_batch, model._n_steps = config["micro_batch"], config["n_steps"]
        model.load_extra_state(config, arrays)
        model._network = model.stored_network("network", arrays)
        return model

    def stored_network(self, prefix: str, arrays: Arrays) -> N | None:
        """Return the network whose weights are stored under a prefix, or None."""
        weights = loop.tensors(prefix, arrays)
        if not weights:
            return None
        network = self.initialised(0)
        network.load_state_dict(weights)
        return network.requires_grad_(False).eval()


class NetworkPhase(loop.Phase):
    """A phase of a model; reads ``ema_fraction`` and ``weight_decay`` of ``params``.

    ``cumulative`` are the records' sampling probabilities, cumulative, float64 of shape
    (n_records,): p(class) ∝ n**class_power, p(record | class) = 1/n.
    """

    cumulative: Tensor

    def __init__(self, network: Any, records: Any, params: Any, batch_size: int) -> None:
        self.network = network
        self.records = records
        self.params = params
        self.batch_size = batch_size
        self.ema_fraction = params.ema_fraction
        self.device = records.y.device

    def adamw(
        self, parameters: Any, rate: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> torch.optim.Optimizer:
        """Return an optimiser, by default with a short memory, as suits a few thousand steps."""
        decay = self.params.weight_decay
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=True)

    def rows(self, rng: torch.Generator) -> Tensor:
        """Draw the row indices of a batch, int64 of shape (batch_size,)."""
        n, device = self.batch_size, self.device
        drawn = torch.rand(n, generator=rng, device=device, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, drawn).clamp_(max=len(self.records.y) - 1)


class RecordNumbers:
    """The random numbers of a micro-batch's records, taken block by block.

    ``keys`` (n,) come from :func:`.counter_rng.record_keys`; the numbers go to ``device``.
    """

    def __init__(self, keys: Uint64, device: torch.device) -> None:
        self.keys = keys
        self.used = 0  # numbers taken per record
        self._device = device

    def normals(self, n_values: int) -> Tensor:
        """Standard normal numbers, float32 of shape (n, n_values)."""
        values = normal(self.keys, n_values, self.used)
        self.used += n_values + n_values % 2
        return torch.from_numpy(values).to(self._device)

    def uniforms(self, n_values: int) -> Tensor:
        """Numbers in [0, 1), float64 of shape (n, n_values)."""
        values = np.empty((len(self.keys), n_values))
        for i in range(n_values):
            values[:, i] = uniform(self.keys, self.used + i)
        self.used += n_values
        return torch.from_numpy(values).to(self._device)

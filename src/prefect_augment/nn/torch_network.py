"""A network from a safetensors file and the user's function that makes it, run by torch on the CPU.

A safetensors file holds tensors alone, so nothing in it can run; the function is the user's own code. Needs torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from prefect_augment.array_types import Float32
from prefect_augment.errors import ParameterError
from prefect_augment.nn.onnx_network import CHANNELS, feature_row

Features = Float32


@dataclass(frozen=True)
class TorchNetwork:
    """A network with its weights that gives features of images; the caller limits torch's threads."""

    module: nn.Module
    name: str  # of the file, for messages
    channels: int  # 1 or 3
    size: int  # side of the images
    n_features: int

    @classmethod
    def open(cls, data: bytes, *, name: str, make: Callable[[], Any], size: int) -> "TorchNetwork":
        """Load the bytes of a safetensors file into what ``make`` returns, and try it on one image.

        Raises ParameterError if the file is no safetensors file or cut off, ``make`` returns no module with these
        very weights, the module takes no images of 3 or 1 channels, or gives no features.
        """
        if not size:
            raise ParameterError(
                f"encoder {name} takes images of any size, and encoder.size is 0; set it to the side that it was "
                "trained on."
            )
        try:
            weights = load(data)
        except (SafetensorError, ValueError) as exc:
            raise ParameterError(
                f"encoder {name} is not a safetensors file, or it is cut off: {exc}; save the network's state_dict by "
                "safetensors.torch.save_file."
            ) from exc
        module = make()
        if not isinstance(module, nn.Module):
            raise ParameterError(
                f"encoder.factory returns {type(module).__name__} for {name}; expected a torch.nn.Module."
            )
        try:
            module.load_state_dict(weights)
        except RuntimeError as exc:
            raise ParameterError(
                f"the weights in encoder {name} are not those of the network that encoder.factory makes: {exc}"
            ) from exc
        module.eval().requires_grad_(requires_grad=False)
        channels = _channels(module, name, size)
        network = cls(module, name, channels, size, 0)
        blank = np.full((2, size, size, channels), 0.5, dtype=np.float32)
        first, second = network.features(blank)
        if not np.array_equal(first, second):
            raise ParameterError(
                f"encoder {name} is refused: it draws random numbers, one image has other features each time."
            )
        return replace(network, n_features=len(first))

    def features(self, images: Features, /) -> Features:
        """Features of scaled images (n, size, size, channels), float32 (n, n_features), n above 0; one by one."""
        rows = []
        with torch.inference_mode():
            for image in images:
                x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
                values = self.module(x)
                if not isinstance(values, torch.Tensor):
                    raise ParameterError(
                        f"encoder {self.name} gives {type(values).__name__}; expected a tensor of features."
                    )
                rows.append(feature_row(values.float().cpu().numpy(), name=self.name))
        return np.stack(rows)


def _channels(module: nn.Module, name: str, size: int) -> int:
    """3 or 1, whichever the network takes."""
    problem = ""
    for channels in reversed(CHANNELS):
        try:
            with torch.inference_mode():
                module(torch.zeros(1, channels, size, size))
        except (RuntimeError, ValueError) as exc:
            problem = str(exc)
        else:
            return channels
    raise ParameterError(
        f"encoder {name} takes no images of shape (1, 3 or 1, {size}, {size}): {problem}"
    )

"""Small encoders of images as ONNX files, sound ones and others."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prefect_augment.params import Encoder

RANKS = {"features": 2, "tokens": 3, "maps": 4, "pooled": 4, "noisy": 4}


def encoder_bytes(
    *,
    shape: Sequence[str | int] = ("n", 1, 12, 12),
    n_features: int = 8,
    output: str = "pooled",
    nodes: Sequence[onnx.NodeProto] = (),
    change: Callable[[onnx.ModelProto], None] | None = None,
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """A convolution of random filters, ReLU and global average pooling.

    ``output`` is one of maps, pooled and features, or of ``nodes``; these stand beside it, ``change`` alters the model.
    """
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(n_features, shape[1] if shape[1] in (1, 3) else 1, 5, 5))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight"], ["signed"], pads=[2, 2, 2, 2]),
            helper.make_node("Relu", ["signed"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            *nodes,
        ],
        "encoder",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * RANKS[output])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if change is not None:
        change(model)
    return bytes(model.SerializeToString())


def encoder_params(folder: Path, data: bytes, **fields: Any) -> Encoder:
    """Parameters of an encoder whose file is written to a folder."""
    path = folder / "encoder.onnx"
    path.write_bytes(data)
    known = {"sha256": hashlib.sha256(data).hexdigest(), "licence": "Apache-2.0"}
    return Encoder(uri=str(path), **(known | fields))


def small_network() -> Any:
    """A torch network whose weights a safetensors file may hold."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.ReLU())


def no_network() -> str:
    return "no network"

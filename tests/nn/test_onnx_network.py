"""Somebody's ONNX file: what is refused, and by which words; what sound files give."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra 'encoder'")
pytest.importorskip("onnxruntime", reason="the extra 'encoder'")

import onnx
from onnx import TensorProto, helper, numpy_helper
from support.encoders import encoder_bytes

from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.nn.onnx_network import OnnxNetwork

SOUND = encoder_bytes()


def opened(data: bytes, **options: object) -> OnnxNetwork:
    return OnnxNetwork.open(data, name="theirs.onnx", **options)  # type: ignore[arg-type]


def images(n: int = 5, size: int = 12, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).random((n, size, size, channels), dtype=np.float32)


def test_features_do_not_depend_on_neighbours_and_maps_are_averaged() -> None:
    network, x = opened(SOUND), images()
    whole = network.features(x)
    assert whole.shape == (5, 8)
    assert whole.dtype == np.float32
    assert np.array_equal(whole[2:3], opened(SOUND).features(x[2:3]))
    for output in ("features", "maps"):  # (n, 8) and (n, 8, 12, 12)
        same = opened(encoder_bytes(output=output)).features(x)
        np.testing.assert_allclose(same, whole, atol=1e-6)


def test_an_open_side_is_asked_for_and_a_fixed_one_is_kept() -> None:
    open_sides = encoder_bytes(shape=("n", 3, "h", "w"))
    with pytest.raises(ParameterError, match="of any size, and encoder.size is 0"):
        opened(open_sides)
    assert opened(open_sides, size=20).size == 20
    assert opened(SOUND).size == opened(SOUND, size=12).size == 12
    with pytest.raises(
        ParameterError, match="12 x 12 pixels, and encoder.size is 32; set it to 12"
    ):
        opened(SOUND, size=32)


def with_external(place: Callable[[onnx.ModelProto, onnx.TensorProto], None]) -> bytes:
    """A file with a tensor that lies in another one, hidden somewhere."""
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return encoder_bytes(change=lambda model: place(model, tensor))


def _in_subgraph(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    inner = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(
        helper.make_node("If", ["image"], ["either"], then_branch=inner, else_branch=inner)
    )


def _in_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(
        helper.make_function("own", "F", [], ["c"], [node], [helper.make_opsetid("", 17)])
    )


PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], None]] = {
    "initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "sparse": lambda model, tensor: model.graph.sparse_initializer.add().values.CopyFrom(tensor),
    "attribute": lambda model, tensor: model.graph.node.append(
        helper.make_node("Constant", [], ["c"], value=tensor)
    ),
    "attributes": lambda model, tensor: (
        model.graph.node.add(op_type="Constant").attribute.add(name="x").tensors.append(tensor)
    ),
    "subgraph": _in_subgraph,
    "function": _in_function,
    "training": lambda model, tensor: model.training_info.add().algorithm.initializer.append(
        tensor
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused_wherever_it_is(place: str) -> None:
    with pytest.raises(ParameterError, match="tensor 'hidden' lies in another file, '../../etc"):
        opened(with_external(PLACES[place]))


def test_weights_beside_the_working_directory_are_not_read(tmp_path: Path) -> None:
    """onnxruntime would read them, though it is given bytes alone."""

    def outside(model: onnx.ModelProto) -> None:
        (tensor,) = model.graph.initializer
        (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    data, before = encoder_bytes(change=outside), Path.cwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(ParameterError, match=r"another file, 'weights.bin'; save .* one file"):
            opened(data)
    finally:
        os.chdir(before)


def _huge() -> bytes:
    sides = helper.make_tensor("sides", TensorProto.INT64, [2], [10**6, 10**6])
    nodes = [
        helper.make_node("Constant", [], ["sides"], value=sides),
        helper.make_node("ConstantOfShape", ["sides"], ["huge"]),
    ]
    return encoder_bytes(nodes=nodes)


def _looping() -> bytes:
    body = helper.make_graph([], "body", [], [])
    return encoder_bytes(nodes=[helper.make_node("Loop", ["", ""], ["x"], body=body)])


def _random() -> bytes:
    nodes = [
        helper.make_node("RandomNormalLike", ["pooled"], ["noise"]),
        helper.make_node("Add", ["pooled", "noise"], ["noisy"]),
    ]
    return encoder_bytes(nodes=nodes, output="noisy")


def _nested() -> bytes:
    node = helper.make_node("Relu", ["a"], ["b"])
    for _ in range(200):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["a"], ["b"], then_branch=graph, else_branch=graph)
        if len(node.SerializeToString()) > 1 << 20:
            break
    return encoder_bytes(nodes=[node])


def _two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [None] * 2)
    )


def _no_numbers(model: onnx.ModelProto) -> None:
    weight = np.full((8, 1, 5, 5), np.inf, dtype=np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))


FOREIGN = [helper.make_node("ReadFile", ["image"], ["x"], domain="com.evil")]
CONTRIB = [helper.make_node("EPContext", ["image"], ["x"], domain="com.microsoft")]
TOKENS = [helper.make_node("Unsqueeze", ["features", "one"], ["tokens"])]
ONE = numpy_helper.from_array(np.array([1]), "one")

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut off": (lambda: SOUND[:-1], "is not an ONNX file, or it is cut off"),
    "half": (lambda: SOUND[: len(SOUND) // 2], "is not an ONNX file, or it is cut off"),
    "empty": (lambda: b"", "no valid ONNX model: .*ir_version"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX file"),
    "a pickle": (lambda: b"\x80\x04\x95\x1b\x00\x00cposix\nsystem\n", "is not an ONNX file"),
    "a web page": (lambda: b"<!doctype html><title>404</title>", "is not an ONNX file"),
    "other operators": (lambda: encoder_bytes(nodes=FOREIGN), "operator com.evil.ReadFile is not"),
    "a cached engine": (lambda: encoder_bytes(nodes=CONTRIB), "com.microsoft.EPContext is not"),
    "a huge constant": (_huge, "tensor 'huge' has 1,000,000,000,000 values"),
    "a loop": (_looping, "operator Loop may never end"),
    "random draws": (_random, "draws random numbers"),
    "nested graphs": (_nested, "theirs.onnx"),
    "two inputs": (lambda: encoder_bytes(change=_two_inputs), r"2 inputs \(image, mask\)"),
    "two outputs": (
        lambda: encoder_bytes(change=_two_outputs),
        "outputs 'pooled', 'features'; set",
    ),
    "five channels": (
        lambda: encoder_bytes(shape=("n", 5, 12, 12)),
        r"takes float \(\?, 5, 12, 12\); expected",
    ),
    "fixed batch": (lambda: encoder_bytes(shape=(8, 1, 12, 12)), r"takes float \(8, 1, 12, 12\)"),
    "three dimensions": (lambda: encoder_bytes(shape=(1, 1, 12)), r"takes float \(1, 1, 12\)"),
    "half precision": (lambda: encoder_bytes(kind=TensorProto.FLOAT16), "takes float16"),
    "unequal sides": (lambda: encoder_bytes(shape=("n", 1, 12, 20)), "12 x 20 pixels; images"),
    "tokens": (
        lambda: encoder_bytes(
            nodes=TOKENS, output="tokens", change=lambda m: m.graph.initializer.append(ONE)
        ),
        r"output 'tokens' of encoder theirs.onnx has shape \(1, 1, 8\) for one image",
    ),
    "infinite weights": (lambda: encoder_bytes(change=_no_numbers), "no finite numbers"),
    "a newer standard": (
        lambda: encoder_bytes(change=lambda m: setattr(m.opset_import[0], "version", 999)),
        "theirs.onnx",
    ),
}


@pytest.mark.parametrize("file", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_by_its_name_and_the_reason(file: str) -> None:
    make, reason = REFUSED[file]
    with pytest.raises(ParameterError, match=reason) as refused:
        opened(make())
    assert "theirs.onnx" in refused.value.message


def test_a_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prefect-augment\[encoder\]'"):
        opened(SOUND)

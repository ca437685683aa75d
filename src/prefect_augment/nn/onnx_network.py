"""A network from somebody's ONNX file: checked before it is opened, then run by onnxruntime on one thread.

onnxruntime reads tensors from other files that a model names, relative to the working directory even where it is
given bytes; it folds constants of any size while it opens a model. So the file is parsed and searched first: no
tensor outside it, no operators of other domains, no loops, nothing of more than 1 GiB. Needs the extra ``encoder``,
which is imported on use.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefect_augment.array_types import Array, Float32
from prefect_augment.errors import MissingExtraError, ParameterError

Features = Float32

MAX_BYTES = 2**31 - 1  # protobuf's limit; larger models keep their weights in other files
MAX_VALUES = 2**28  # of one tensor: 1 GiB of float32
MAX_FEATURES = 2**16
CHANNELS = (1, 3)
# Operators of the standard alone: others are code of other packages, or read files (EPContext).
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# When these end is not known before they run.
LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True)
class OnnxNetwork:
    """A checked network that gives features of images."""

    session: Any
    name: str  # of the file, for messages
    channels: int  # 1 or 3
    size: int  # side of the images
    channels_last: bool  # (n, height, width, channels) instead of (n, channels, height, width)
    output: str
    n_features: int

    @classmethod
    def open(cls, data: bytes, *, name: str, size: int = 0, output: str = "") -> "OnnxNetwork":
        """Open the bytes of an ONNX file, and try it on one image; ``name`` is used in messages.

        The network has one input of images, float32 (n, channels, height, width) or (n, height, width,
        channels), with n left open or 1, 1 or 3 channels, and equal sides. ``size`` is the side where the file
        leaves it open; ``output`` is needed where there are several. Raises MissingExtraError without onnx and
        onnxruntime; ParameterError for what is not such a file, or not safe to open.
        """
        onnx, runtime = _libraries()
        model = _parse(onnx, data, name)
        channels, side, channels_last = _input_shape(onnx, model, name)
        if (side and size not in (0, side)) or not (side or size):
            says = f"takes images of {side} x {side} pixels" if side else "takes images of any size"
            raise ParameterError(
                f"encoder {name} {says}, and encoder.size is {size}; set it to "
                f"{side or 'the side that it was trained on'}."
            )
        known = [value.name for value in model.graph.output]
        if output not in (known if len(known) > 1 or output else [""]):
            raise ParameterError(
                f"encoder {name} has the outputs {', '.join(map(repr, known))}; set encoder.output to the one with "
                "the features."
            )
        options = runtime.SessionOptions()
        # One thread, as all estimators: the same bytes on every machine of a kind.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        try:
            session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except _failures() as exc:
            raise ParameterError(
                f"encoder {name} does not open in onnxruntime {runtime.__version__}: {_first_line(exc)}; export it "
                "with an older opset, or update the extra encoder."
            ) from exc
        network = cls(session, name, channels, side or size, channels_last, output or known[0], 0)
        blank = np.full((2, network.size, network.size, channels), 0.5, dtype=np.float32)
        first, second = network.features(blank)
        if not np.array_equal(first, second):
            raise _refused(name, "it draws random numbers: one image has other features each time")
        return replace(network, n_features=len(first))

    def features(self, images: Features, /) -> Features:
        """Features of scaled images (n, size, size, channels), float32 of shape (n, n_features), n above 0.

        Maps of features are averaged over the image. Images go through one by one, which takes no longer
        on one thread and makes features independent of an image's neighbours. Raises ParameterError if the
        network fails, its output has another shape, or features are not finite.
        """
        return np.stack([self._of_one(image) for image in images])

    def _of_one(self, image: Features) -> Features:
        x = image if self.channels_last else image.transpose(2, 0, 1)
        feed = {self.session.get_inputs()[0].name: np.ascontiguousarray(x[None])}
        try:
            (values,) = self.session.run([self.output], feed)
        except _failures() as exc:
            raise ParameterError(
                f"encoder {self.name} fails on an image of {image.shape[0]} x {image.shape[1]} pixels: "
                f"{_first_line(exc)}"
            ) from exc
        return feature_row(
            values, name=self.name, output=self.output, channels_last=self.channels_last
        )


def feature_row(
    values: Array, *, name: str, output: str = "", channels_last: bool = False
) -> Features:
    """Features of one image from a network's output for it, float32 (n_features,); maps are averaged.

    ParameterError for another shape, and for infinite numbers.
    """
    shape = np.shape(values)
    if len(shape) == 4:
        values = values.mean(axis=(1, 2) if channels_last else (2, 3), dtype=np.float32)
    if len(shape) not in (2, 4) or shape[0] != 1 or not 0 < values.shape[1] <= MAX_FEATURES:
        what = f"output {output!r} of encoder {name}" if output else f"the output of encoder {name}"
        raise ParameterError(
            f"{what} has shape {tuple(shape)} for one image; expected (1, n_features) or (1, n_features, height, "
            f"width), with at most {MAX_FEATURES:,} features; export the layer before the classes."
        )
    if not np.isfinite(values).all():
        raise ParameterError(
            f"encoder {name} gives features that are no finite numbers; look at encoder.mean and encoder.std."
        )
    return values[0].astype(np.float32)


def _libraries() -> tuple[Any, Any]:
    """Onnx and onnxruntime."""
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"an encoder of images needs {exc.name}: pip install 'prefect-augment[encoder]'",
            extra="encoder",
        ) from exc
    return onnx, onnxruntime


def _failures() -> tuple[type[Exception], ...]:
    """Errors of onnxruntime, which have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def _parse(onnx: Any, data: bytes, name: str) -> Any:
    """The model in a file, once nothing speaks against opening it."""
    from google.protobuf.message import DecodeError

    if len(data) > MAX_BYTES:
        raise ParameterError(f"encoder {name} has {len(data):,} bytes; at most 2 GiB are read.")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as exc:
        raise ParameterError(
            f"encoder {name} is not an ONNX file, or it is cut off: {_first_line(exc)}; export the network to ONNX, "
            "and compare the file's length with the original's."
        ) from exc
    _search(onnx, model, name)
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as exc:
        raise ParameterError(
            f"encoder {name} is no valid ONNX model: {_first_line(exc)}; export it again."
        ) from exc
    for value in inferred.graph.value_info:
        n = math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        if n > MAX_VALUES:
            raise _refused(name, f"its tensor {value.name!r} has {n:,} values")
    return model


def _search(onnx: Any, model: Any, name: str) -> None:
    """Refuse what would read files, run foreign code, or may not end, wherever in the file it is."""
    own = {function.domain for function in model.functions}
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto):
            if message.external_data or message.data_location == onnx.TensorProto.EXTERNAL:
                location = next((e.value for e in message.external_data if e.key == "location"), "")
                raise _refused(
                    name,
                    f"its tensor {message.name!r} lies in another file, {location!r}; save the network in one file",
                )
        elif isinstance(message, onnx.NodeProto):
            what = f"{message.domain}.{message.op_type}" if message.domain else message.op_type
            if message.domain not in DOMAINS | own:
                raise _refused(name, f"its operator {what} is not one of the ONNX standard")
            if message.op_type in LOOPS:
                raise _refused(name, f"its operator {what} may never end")


def _messages(message: Any) -> Iterator[Any]:
    """All messages inside one, in graphs, subgraphs, functions, attributes and training information."""
    waiting = [message]
    while waiting:
        one = waiting.pop()
        yield one
        for field, value in one.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else value


def _refused(name: str, why: str) -> ParameterError:
    return ParameterError(f"encoder {name} is refused: {why}.", encoder=name)


def _input_shape(onnx: Any, model: Any, name: str) -> tuple[int, int, bool]:
    """Channels, side (0 where open) and whether channels come last, of the network's only input."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise ParameterError(
            f"encoder {name} has {len(inputs)} inputs ({', '.join(v.name for v in inputs)}); expected one, the images."
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    shown = f"{kind.lower()} ({', '.join(str(d or '?') for d in dims)})"
    expected = "expected float (n, channels, height, width), n open or 1, and 1 or 3 channels"
    if kind != "FLOAT" or len(dims) != 4 or dims[0] > 1 or not {*CHANNELS} & {dims[1], dims[3]}:
        raise ParameterError(f"encoder {name} takes {shown}; {expected}.")
    channels_last = dims[1] not in CHANNELS and dims[3] in CHANNELS
    channels = dims[3] if channels_last else dims[1]
    height, width = dims[1:3] if channels_last else dims[2:]
    if height != width:
        raise ParameterError(
            f"encoder {name} takes {shown}, {height or '?'} x {width or '?'} pixels; images are made square, so export "
            "it with equal sides."
        )
    return channels, height, channels_last


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0].rstrip(".")

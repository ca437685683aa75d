"""A user's pretrained encoder of images: found by its digest, and images as features.

A run reads the file once, and keeps a copy by digest below the destination's ``_staging``, which all its steps
open. Whoever uses a published recipe opens the file itself.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.images import encode_column
from prefect_augment.encoding.pixels import fit_square, with_channels
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.nn.onnx_network import MAX_BYTES, OnnxNetwork
from prefect_augment.params import Encoder
from prefect_augment.params.keys import step_key
from prefect_augment.registry import load_function
from prefect_augment.schema import EncoderInfo, Recipe
from prefect_augment.storage import Stage, Store, open_store, sha256_hex

if TYPE_CHECKING:
    from prefect_augment.nn.torch_network import TorchNetwork

Features = NDArray[np.float32]

ENTRY_POINTS = "prefect_augment.encoders"
MAX_OPEN = 2
BLOCK = 256  # images that are in memory at a time


@dataclass(frozen=True)
class FeatureEncoder:
    """An open encoder: features of images, each by itself."""

    info: EncoderInfo
    network: "OnnxNetwork | TorchNetwork"
    limit: Callable[[], AbstractContextManager[None]]  # of torch's threads
    mean: NDArray[np.float32]  # (n_channels,) or (1,)
    std: NDArray[np.float32]

    @classmethod
    def of(cls, info: EncoderInfo, data: bytes) -> "FeatureEncoder":
        """The encoder in the bytes of its file; ParameterError where they are others', or cannot be used."""
        sha256 = sha256_hex(data)
        if sha256 != info.sha256:
            raise ParameterError(
                f"encoder {info.name} has sha256 {sha256}, and {info.sha256} is expected: it is another file, or "
                "damaged; get the right file, or change encoder.sha256.",
                sha256=sha256,
            )
        network: OnnxNetwork | TorchNetwork
        limit: Callable[[], AbstractContextManager[None]]
        if info.factory:
            network, limit = _torch_network(info, data)
        else:
            network = OnnxNetwork.open(data, name=info.name, size=info.size, output=info.output)
            limit = nullcontext
        scales = []
        for name, values, default in (("mean", info.mean, 0.0), ("std", info.std, 1.0)):
            if len(values) not in (0, 1, network.channels):
                raise ParameterError(
                    f"encoder.{name} has {len(values)} numbers, and {info.name} takes {network.channels} channels; "
                    f"give one or {network.channels}."
                )
            scales.append(np.array(values or [default], dtype=np.float32))
        return cls(info, network, limit, *scales)

    @property
    def title(self) -> str:
        """What the report calls its features."""
        return f"features of your encoder {self.info.name} (sha256 {self.info.sha256[:12]}…)"

    def features(self, images: Any, /) -> Features:
        """Features of images, float32 of shape (n, n_features).

        ``images`` is a column of encoded images, as published datasets have them (``to_table()["image"]``), or
        holds uint8 arrays of shape (height, width, channels) or (height, width). Each is scaled into the encoder's
        square with its aspect kept, and reflection fills the rest. Raises ParameterError if the network fails,
        or its features are not finite.
        """
        blocks = [
            self._of_block(images[start : start + BLOCK]) for start in range(0, len(images), BLOCK)
        ]
        return np.concatenate(blocks or [np.zeros((0, self.network.n_features), np.float32)])

    def _of_block(self, images: Any) -> Features:
        size, channels = self.network.size, self.network.channels
        if isinstance(images, pa.Array | pa.ChunkedArray):
            squares = encode_column(images, size=size, channels=channels)
        else:
            arrays = [np.asarray(image) for image in images]
            pixels = [a[:, :, None] if a.ndim == 2 else a for a in arrays]
            squares = np.stack([with_channels(fit_square(p, size), channels) for p in pixels])
        scaled = (squares.astype(np.float32) / 255 - self.mean) / self.std
        with self.limit():
            return self.network.features(scaled.astype(np.float32))


def _torch_network(
    info: EncoderInfo, data: bytes
) -> "tuple[TorchNetwork, Callable[[], AbstractContextManager[None]]]":
    """A network with weights from safetensors, and what limits torch to one thread."""
    try:
        from prefect_augment.evaluation.classifiers.convnet import one_torch_thread
        from prefect_augment.nn.torch_network import TorchNetwork
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "torch":
            raise
        raise MissingExtraError(
            f"encoder {info.name} with a factory needs torch: pip install 'prefect-augment[torch]'",
            extra="torch",
        ) from exc
    make = load_function(info.factory, group=ENTRY_POINTS, field="encoder.factory")
    with one_torch_thread():
        network = TorchNetwork.open(data, name=info.name, make=make, size=info.size)
    return network, one_torch_thread


# Steps of a run use it one after the other, some from several threads.
_opened: OrderedDict[tuple[str, EncoderInfo], FeatureEncoder] = OrderedDict()
_opened_lock = Lock()


def open_encoder(
    recipe: Recipe | EncoderInfo,
    uri: str | os.PathLike[str] = "",
    options: dict[str, Any] | None = None,
) -> FeatureEncoder:
    """Return the encoder that a published recipe names, found by its sha256.

    ``recipe`` is ``dataset.recipe``, of a linear probe, or ``dataset.manifest.encoder``; ``uri`` the file, where
    it lies elsewhere by now (a local path or an fsspec URL); ``options`` are fsspec's.

    Raises
    ------
    ParameterError
        If the recipe has no encoder, or the file is another one or cannot be used.
    MissingExtraError
        If onnx or onnxruntime is not installed.
    """
    info = recipe.encoder if isinstance(recipe, Recipe) else recipe
    if info is None:
        raise ParameterError(
            "the recipe has no encoder: another strategy than the linear probe won; train by it as its sentence says."
        )
    return FeatureEncoder.of(info, _read(os.fspath(uri) or info.uri, options))


def staged_encoder(
    params: Encoder, store: Store, options: dict[str, Any] | None = None
) -> FeatureEncoder:
    """The encoder of a run; its file is read once, and kept by digest below the destination's ``_staging``."""
    info = EncoderInfo.of(params)
    key = (store.uri, info)
    with _opened_lock:
        if key not in _opened:
            path = f"{Stage(store, 'encoder', step_key('encoder', {'encoder': params})).prefix}/weights"
            try:
                encoder = FeatureEncoder.of(info, store.read(path))
            except FileNotFoundError:
                data = _read(params.uri, options)
                encoder = FeatureEncoder.of(info, data)
                store.put_if_absent(path, data)
            _opened[key] = encoder
        _opened.move_to_end(key)
        while len(_opened) > MAX_OPEN:
            _opened.popitem(last=False)
        return _opened[key]


def _read(uri: str, options: dict[str, Any] | None) -> bytes:
    folder, _, name = uri.rpartition("/")
    store = open_store(folder or ("/" if uri.startswith("/") else "."), options=options)
    try:
        n_bytes = store.size(name)
        if n_bytes > MAX_BYTES:
            raise ParameterError(f"encoder {uri} has {n_bytes:,} bytes; at most 2 GiB are read.")
        return store.read(name)
    except FileNotFoundError as exc:
        raise ParameterError(
            f"encoder {uri} does not exist; set encoder.uri, or uri of open_encoder, to the place of the file.",
            uri=uri,
        ) from exc

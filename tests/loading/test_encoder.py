"""An encoder by its digest: the right file or none, read once, images in any form."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("onnxruntime", reason="the extra 'encoder'")
pytest.importorskip("PIL", reason="the extra 'images'")

from PIL import Image
from pydantic import ValidationError
from support.encoders import encoder_bytes, encoder_params

from prefect_augment.errors import ParameterError
from prefect_augment.loading import encoder as module
from prefect_augment.loading.encoder import FeatureEncoder, open_encoder, staged_encoder
from prefect_augment.params import Encoder
from prefect_augment.schema import EncoderInfo
from prefect_augment.storage import Store

DATA = encoder_bytes()


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    module._opened.clear()
    yield
    module._opened.clear()


def opened(folder: Path, data: bytes = DATA, **fields: object) -> FeatureEncoder:
    return open_encoder(EncoderInfo.of(encoder_params(folder, data, **fields)))


def pictures(n: int = 3, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 1), dtype=np.uint8)


def as_column(images: np.ndarray) -> pa.Array:
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(file, "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    return pa.array(encoded, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def test_a_column_and_an_array_of_the_same_pictures_have_the_same_features(tmp_path: Path) -> None:
    encoder, images = opened(tmp_path), pictures(3)
    found = encoder.features(images)
    assert found.shape == (3, 8)
    assert np.array_equal(encoder.features(as_column(images)), found)
    assert np.array_equal(encoder.features(list(images[:, :, :, 0])), found)
    in_colour = encoder.features(np.repeat(images, 3, axis=3))
    np.testing.assert_allclose(in_colour, found, atol=1e-6)
    assert encoder.features(pictures(2, side=30)).shape == (2, 8)
    assert encoder.features(images[:0]).shape == (0, 8)


def test_pixels_are_scaled_by_mean_and_std(tmp_path: Path) -> None:
    images = pictures()
    plain, scaled = opened(tmp_path), opened(tmp_path, mean=[0.5], std=[0.25])
    x = (images.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.25)
    assert np.array_equal(scaled.features(images), plain.network.features(x))
    with pytest.raises(ParameterError, match=r"mean has 3 numbers, and encoder.onnx takes 1 ch"):
        opened(tmp_path, mean=[0.5, 0.4, 0.3])


def test_another_file_is_refused_by_its_sha256(tmp_path: Path) -> None:
    info = EncoderInfo.of(encoder_params(tmp_path, DATA))
    (tmp_path / "encoder.onnx").write_bytes(DATA + b"\0")
    with pytest.raises(ParameterError, match=rf"has sha256 \w+, and {info.sha256} is expected"):
        open_encoder(info)
    (tmp_path / "moved.onnx").write_bytes(DATA)
    assert open_encoder(info, tmp_path / "moved.onnx").info == info
    with pytest.raises(ParameterError, match=r"gone\.onnx does not exist"):
        open_encoder(info, tmp_path / "gone.onnx")


def test_a_run_reads_the_file_once_and_goes_on_without_it(tmp_path: Path, store: Store) -> None:
    params = encoder_params(tmp_path, DATA)
    first = staged_encoder(params, store)
    assert staged_encoder(params, store) is first
    (tmp_path / "encoder.onnx").unlink()
    module._opened.clear()  # another worker
    again = staged_encoder(params, store)
    assert np.array_equal(again.features(pictures()), first.features(pictures()))
    (path,) = (path for path in store.list("_staging") if path.endswith("/weights"))
    assert store.read(path) == DATA


def licensed(licence: str) -> str:
    return Encoder(uri="nets/encoder.onnx", sha256="0" * 64, licence=licence).why_unpublishable


@pytest.mark.parametrize(
    "licence",
    ["CC-BY-NC-4.0", "cc-by-nc-sa-3.0", "MIT AND CC-BY-ND-4.0", "(CC-BY-NC-ND-4.0)", "NOASSERTION"],
)
def test_a_licence_that_forbids_it_is_named(licence: str) -> None:
    assert "encoder.onnx is under" in licensed(licence)
    assert "nothing made with it can be published" in licensed(licence)


def test_a_missing_licence_forbids_and_a_free_one_allows() -> None:
    assert "has no licence" in licensed(" ")
    assert [licensed(one) for one in ("Apache-2.0", "CC-BY-4.0", "MIT OR BSD-3-Clause")] == [""] * 3
    assert Encoder().why_unpublishable == ""


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"uri": "a.onnx"}, "sha256sum FILE"),
        ({"uri": "https://x.org/a.onnx", "sha256": "0" * 64}, "nothing is downloaded by https"),
        ({"uri": "zip://a::hf://a/b", "sha256": "0" * 64}, "nothing is downloaded by hf"),
        ({"std": [0.0]}, "expected numbers above 0"),
    ],
)
def test_parameters_that_cannot_work_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Encoder(**fields)  # type: ignore[arg-type]


# --- safetensors with a factory ---------------------------------------------------------------


def saved(**changed: object) -> bytes:
    torch = pytest.importorskip("torch", reason="the extra 'torch'")
    from safetensors.torch import save
    from support.encoders import small_network

    state = dict(small_network().state_dict()) | changed
    return save(
        {name: torch.as_tensor(value) for name, value in state.items() if value is not None}
    )


@pytest.fixture
def _follows_import_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_AUGMENT_ALLOW_IMPORT_PATHS", "1")


@pytest.mark.usefixtures("_follows_import_paths")
def test_safetensors_with_a_factory_give_the_features_of_the_network(tmp_path: Path) -> None:
    data, factory = saved(), "support.encoders:small_network"
    encoder, images = opened(tmp_path, data, factory=factory, size=12), pictures()
    from support.encoders import small_network

    torch = pytest.importorskip("torch")
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    maps = small_network()(x).detach().numpy()
    np.testing.assert_allclose(encoder.features(images), maps.mean(axis=(2, 3)), atol=1e-5)
    assert np.array_equal(encoder.features(images[1:2]), encoder.features(images)[1:2])


@pytest.mark.usefixtures("_follows_import_paths")
@pytest.mark.parametrize(
    ("data", "factory", "size", "reason"),
    [
        (lambda: saved()[:-3], "small_network", 12, "is not a safetensors file, or it is cut off"),
        (lambda: b"\x80\x04\x95pickle" * 4, "small_network", 12, "is not a safetensors file"),
        (lambda: saved(other=np.zeros(2)), "small_network", 12, "not those of the network"),
        (saved, "no_network", 12, "returns str .*expected a torch.nn.Module"),
        (saved, "small_network", 0, "encoder.size is 0; set it"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(
    tmp_path: Path, data: Callable[[], bytes], factory: str, size: int, reason: str
) -> None:
    with pytest.raises(ParameterError, match=reason) as refused:
        opened(tmp_path, data(), factory=f"support.encoders:{factory}", size=size)
    assert "encoder.onnx" in refused.value.message


def test_a_factory_is_not_imported_where_the_worker_does_not_allow_it(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="an import path, which this worker does not follow"):
        opened(tmp_path, saved(), factory="support.encoders:small_network", size=12)

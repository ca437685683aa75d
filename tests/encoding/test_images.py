"""The image encoder: one size and one number of channels for models, the source's columns back."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from prefect_augment.encoding.images import ImageEncoder, encode_column, image_array, model_size
from prefect_augment.encoding.pixels import decode_image, encode_jpeg, encode_png, resize
from prefect_augment.errors import ParameterError, SchemaError, UndecodableError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}


def picture(seed: int, width: int = 28, height: int = 28, channels: int = 1) -> NDArray[np.uint8]:
    """Smooth, as photographs are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    return resize(small, width, height)


def make_table(
    images: list[bytes], labels: list[str] | None = None, **columns: pa.Array
) -> pa.Table:
    labels = labels or ["ab"[i % 2] for i in range(len(images))]
    paths = [f"{i}.png" for i in range(len(images))]
    table = pa.table(
        {"image": image_array(images, paths, IMAGE), "label": pa.array(labels), **columns}
    )
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )


def fit(table: pa.Table, **options: object) -> ImageEncoder:
    return ImageEncoder.fit(table, column="image", label="label", **options)  # type: ignore[arg-type]


# --- to arrays --------------------------------------------------------------------------------


def test_small_gray_images_are_encoded_as_they_are() -> None:
    pictures = [picture(i) for i in range(6)]
    table = make_table([encode_png(p) for p in pictures])
    encoder = fit(table)
    assert (encoder.size, encoder.channels) == (28, 1)
    assert np.array_equal(encoder.encode(table), np.stack(pictures))


def test_model_size_is_the_common_one_up_to_32() -> None:
    sizes = [(28, 28), (8, 8), (3, 3), (20, 30), (32, 32), (33, 10), (600, 400)]
    assert [model_size(size) for size in sizes] == [28, 8, 8, 32, 32, 32, 32]


def test_mixed_sizes_and_modes_end_as_one_array() -> None:
    table = make_table(
        [
            encode_png(picture(0, 40, 20, 3)),
            encode_jpeg(picture(1, 9, 90)),
            encode_png(picture(2, 1, 1)),
        ]
    )
    assert fit(table, size=32).encode(table).shape == (3, 32, 32, 3)


def test_colour_images_without_colour_are_gray_to_models_and_rgb_outside() -> None:
    """X-rays are often stored as RGB: three equal channels are one to learn from."""
    table = make_table([encode_jpeg(np.repeat(picture(i), 3, axis=2)) for i in range(4)])
    encoder = fit(table)
    assert (encoder.channels, encoder.out_channels) == (1, 3)
    out = encoder.decode(encoder.encode(table), strata=["a"] * 4, aug_ids=["0"] * 4)
    assert decode_image(out["image"][0].as_py()["bytes"]).shape == (28, 28, 3)


def test_size_as_asked_must_fit_a_network() -> None:
    table = make_table([encode_png(picture(0)), encode_png(picture(1))])
    assert fit(table, size=48).encode(table).shape == (2, 48, 48, 1)
    for size in (30, 4, 0):
        with pytest.raises(ParameterError, match="multiple of 4"):
            fit(table, size=size)


def test_undecodable_image_is_named_by_its_place() -> None:
    table = make_table([encode_png(picture(0)), b"no image"])
    with pytest.raises(UndecodableError, match="image 1 of column 'image'"):
        encode_column(table["image"], size=28, channels=1)


def test_missing_columns_are_named() -> None:
    with pytest.raises(SchemaError, match="'image'"):
        fit(pa.table({"label": ["a", "b"]}))


def test_no_record_is_too_few() -> None:
    with pytest.raises(ParameterError, match="at least one record"):
        fit(make_table([]))


# --- and back ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> pa.Table:
    """Images of 60 × 40 with columns beside them that no model makes, as ingest stages them."""
    n = 12
    return make_table(
        [encode_png(picture(i, 60, 40, 3)) for i in range(n)],
        None,
        site=pa.array(["north", "south"] * (n // 2)).dictionary_encode(),
        taken=pa.array(range(n), pa.int32()),
        aug_id=pa.array([f"{i:032x}" for i in range(n)]),
        content_key=pa.array([f"{i:032x}" for i in range(n)]),
    )


def test_records_come_back_in_the_sources_columns(wide: pa.Table) -> None:
    encoder = ImageEncoder.fit(wide, column="image", label="label", by=["site"])
    strata = list(encoder.strata)
    images = encoder.encode(wide)[: len(strata)]
    made = encoder.decode(images, strata=strata, aug_ids=[f"id{i}" for i in range(len(strata))])
    assert made.schema.equals(
        wide.select(["image", "label", "site", "taken"]).schema, check_metadata=True
    )
    assert made["label"].to_pylist() == [name[0] for name in strata]
    assert made["site"].to_pylist() == ["north", "south"]
    assert made["taken"].null_count == len(strata)
    assert made["image"][0].as_py()["path"] == "synthetic/id0.png"


def test_output_has_the_common_size_with_the_filling_cut_off(wide: pa.Table) -> None:
    encoder = fit(wide)
    assert (encoder.size, encoder.out_size) == (32, (60, 40))
    made = encoder.decode(encoder.encode(wide), strata=["a"] * 12, aug_ids=["x"] * 12)
    for before, after in zip(wide["image"], made["image"], strict=True):
        there = decode_image(before.as_py()["bytes"]).astype(int)
        back = decode_image(after.as_py()["bytes"]).astype(int)
        assert back.shape == there.shape
        assert np.abs(back - there).mean() < 6  # half the resolution of a smooth picture


def test_output_like_other_records_has_their_shapes_and_colours() -> None:
    """Of a landscape dataset the portraits keep their top and bottom, of a gray one the red stays red."""
    wide, tall = picture(0, 64, 48), picture(1, 48, 64)
    red = np.dstack([picture(2, 64, 48), np.zeros((48, 64, 2), np.uint8)])
    table = make_table([*[encode_png(wide)] * 6, encode_png(tall), encode_png(red)])
    encoder = fit(table)
    assert (encoder.out_size, encoder.out_channels) == ((64, 48), 1)
    made = encoder.decode(encoder.encode(table), strata=["a"] * 8, aug_ids=["x"] * 8, like=table)[
        "image"
    ]
    back = [decode_image(made[i].as_py()["bytes"]) for i in (0, 6, 7)]
    assert [b.shape for b in back] == [(48, 64, 1), (64, 48, 1), (48, 64, 3)]
    assert np.abs(back[1].astype(int) - tall).mean() < 12
    again = encoder.encode(make_table([encode_png(b) for b in back[:2]])).astype(int)
    assert np.abs(again - encoder.encode(table.take([0, 6])).astype(int)).mean() < 6


def test_output_size_as_asked_keeps_the_aspect(wide: pa.Table) -> None:
    assert fit(wide, image_size=30).out_size == (30, 20)
    assert fit(wide, image_size=30).size == 32


def test_without_a_common_size_the_middle_counts() -> None:
    table = make_table([encode_png(picture(i, 40 + i, 80 - i)) for i in range(21)])
    assert fit(table).out_size == (50, 70)


def test_unchanged_images_go_out_pixel_by_pixel() -> None:
    pictures = [picture(i, 30, 22, 3) for i in range(2)]
    table = make_table([encode_png(p) for p in pictures])
    encoder = fit(table)
    made = encoder.decode(encoder.encode(table), strata=["a", "b"], aug_ids=["0", "1"])
    for place, expected in enumerate(pictures):
        assert np.array_equal(decode_image(made["image"][place].as_py()["bytes"]), expected)


def test_made_records_load_as_images_elsewhere(wide: pa.Table, tmp_path: Path) -> None:
    encoder = fit(wide.select(["image", "label"]))
    made = encoder.decode(encoder.encode(wide), strata=["b"] * 12, aug_ids=["x"] * 12)
    pq.write_table(made, tmp_path / "made.parquet")
    loaded = datasets.Dataset.from_parquet(
        str(tmp_path / "made.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert loaded[3]["image"].size == (60, 40)
    assert set(loaded["label"]) == {"b"}


def test_wrong_arrays_and_strata_are_refused(wide: pa.Table) -> None:
    encoder = fit(wide)
    good = encoder.encode(wide)[:1]
    with pytest.raises(ParameterError, match=r"expected uint8 of shape \(n, 32, 32, 3\)"):
        encoder.decode(good.astype(np.float32), strata=["a"], aug_ids=["x"])  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="unknown strata"):
        encoder.decode(good, strata=["z"], aug_ids=["x"])


# --- storage ----------------------------------------------------------------------------------


def test_encoder_survives_json(wide: pa.Table) -> None:
    encoder = ImageEncoder.fit(wide, column="image", label="label", by=["site"])
    again = ImageEncoder.from_json(encoder.to_json())
    assert again.digest == encoder.digest
    images = encoder.encode(wide)
    assert np.array_equal(again.encode(wide), images)
    strata = [encoder.strata[0]] * 12
    ids = [str(i) for i in range(12)]
    assert again.decode(images, strata=strata, aug_ids=ids).equals(
        encoder.decode(images, strata=strata, aug_ids=ids), check_metadata=True
    )


def test_order_of_records_does_not_change_the_encoder(wide: pa.Table) -> None:
    backwards = wide.take(pa.array(range(11, -1, -1)))
    assert fit(wide.drop_columns("site")).digest == fit(backwards.drop_columns("site")).digest


def test_json_of_a_table_encoder_is_refused() -> None:
    with pytest.raises(ParameterError, match="of 'table' data"):
        ImageEncoder.from_json(b'{"format": 1}')


def test_rule_says_what_happens_to_images(wide: pa.Table) -> None:
    rule = fit(wide).rule
    assert "32×32 pixels in colour" in rule
    assert "60×40 RGB PNG" in rule


def test_real_images_of_every_set_are_encoded(shared_data: Path) -> None:
    expected = {
        "fashion_test": (28, 1, (28, 28)),
        "bccd_cells_test": (32, 3, (96, 96)),
        "magnetic_tile_test": (32, 1, None),
        "pneumonia_val": (28, 1, (28, 28)),
    }
    for name, (size, channels, out_size) in expected.items():
        path = shared_data / "images" / f"{name}.parquet"
        table = next(pq.ParquetFile(io.BytesIO(path.read_bytes())).iter_batches(200))
        encoder = fit(pa.Table.from_batches([table]))
        assert (encoder.size, encoder.channels) == (size, channels)
        assert encoder.out_size == (out_size or encoder.out_size)

"""Train and sample on staged images: receipts, resume, micro-batches, and when not to."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.staging import class_plan, plan_of, stage_parts
from support.steps import experiment_of

pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.images.flow_matching import FlowPhase
from prefect_augment.nn import devices, loop
from prefect_augment.nn.budget import Calibration
from prefect_augment.params import AutoModel, Budget, DiffusionModel, TreesModel
from prefect_augment.schema import ColumnInfo, DatasetRef, ImageInfo, ModelRef
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store, read_result
from prefect_augment.synthesis import sample as sample_stage
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.resume import read_training
from prefect_augment.synthesis.sample import sample
from prefect_augment.synthesis.train import train, why_no_image_model
from prefect_augment.synthesis.training_budget import TRAINING_SHARE

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COUNTS = {"dark": 30, "bright": 12, "lone": 3}
MODEL = DiffusionModel(width=16, sampler_steps=2)
STEPS = Budget(steps=6, batch_size=16, device="cpu")


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def pictures(size: int = 12) -> pa.Table:
    rng = np.random.default_rng(0)
    labels = [name for name, n in COUNTS.items() for _ in range(n)]
    level = {"dark": 40, "bright": 210, "lone": 120}
    images = [
        {
            "bytes": png((level[k] + rng.integers(-9, 10, (size, size))).astype(np.uint8)),
            "path": f"{k}/{i}.png",
        }
        for i, k in enumerate(labels)
    ]
    return pa.table({"image": pa.array(images, IMAGE), "label": labels})


def staged(store: Store, size: int = 12) -> DatasetRef:
    """Images as ingest stages them."""
    image = ImageInfo(
        column="image", modes={"L": 45}, formats={"PNG": 45}, sizes={f"{size}x{size}": 45},
        n_sizes=1, most_common_size=(size, size), smallest_side=size, largest_side=size,
        n_channels=1,
    )  # fmt: skip
    return stage_parts(
        store, {"training": pictures(size)}, label="label", max_records=20,
        compared=("bright", "dark"), modality="image", image=image,
        columns=(ColumnInfo(name="image", arrow_type="struct", kind="image", n_null=0, n_unique=45),),
    )  # fmt: skip


PLAN = plan_of(class_plan(name, n) for name, n in COUNTS.items())


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share the cores with one another, and threads would wait."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def dataset(store: Store) -> DatasetRef:
    return staged(store)


def run(
    dataset: DatasetRef,
    store: Store,
    *,
    on_progress: Callable[[float, str], None] | None = None,
    **changes: Any,
) -> ModelRef:
    params: dict[str, Any] = {"model": MODEL, "budget": STEPS, "seed": 3, **changes}
    return train(experiment_of(dataset, PLAN, **params), store, on_progress=on_progress)


def calibration(store: Store, ref: ModelRef) -> Calibration:
    found = read_result(store, f"_staging/train/{ref.key}/calibration.json", Calibration)
    assert found is not None
    return found


def test_model_encoder_and_how_it_was_trained_are_kept(dataset: DatasetRef, store: Store) -> None:
    heard: list[tuple[float, str]] = []
    ref = run(dataset, store, on_progress=lambda done, what: heard.append((done, what)))
    assert (ref.kind, ref.steps, ref.n_training) == ("diffusion", 6, 45)
    assert ref.strata == ("bright", "dark")
    assert "'lone' has 3 training records" in ref.notes[0]
    model, encoder = load_model(store, ref)
    assert isinstance(encoder, ImageEncoder)
    assert (encoder.size, encoder.channels) == (12, 1)
    assert model.n_steps == 6
    kept = calibration(store, ref)
    assert (kept.steps, kept.batch_size, kept.device) == (6, 16, "cpu")
    assert heard[-1][0] == 1.0
    assert "images/s" in heard[-1][1]


@pytest.mark.slow
def test_minutes_become_steps_once_and_reruns_obey_the_receipt(
    dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = Budget(minutes=0.02, batch_size=8, device="cpu")
    first = run(dataset, store, budget=minutes)
    kept = calibration(store, first)
    assert kept.steps == first.steps >= 1
    assert kept.steps == int(0.02 * 60 * TRAINING_SHARE / kept.seconds_per_step)
    for path in store.list(f"_staging/train/{first.key}"):
        if not path.endswith("calibration.json"):
            store.delete(path)
    monkeypatch.setattr(loop, "seconds_per_step", lambda *a, **k: 1e-9)  # much faster now
    assert run(dataset, store, budget=minutes) == first


def test_a_budget_without_room_for_one_step_is_refused(dataset: DatasetRef, store: Store) -> None:
    with pytest.raises(ParameterError, match=r"too little for one step; raise budget\.minutes"):
        run(dataset, store, budget=Budget(minutes=1e-6, device="cpu"))


@pytest.mark.slow
def test_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    dataset: DatasetRef, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(dataset, store)
    other = open_store(str(tmp_path / "other"))
    staged(other)
    often = STEPS.model_copy(update={"checkpoint_seconds": 0.0})
    n_batches = Counter[str]()
    draw = FlowPhase.batch

    def die_in_the_fifth(self: Any, *args: Any) -> Any:
        n_batches["first" if n_batches["first"] < 5 else "second"] += 1
        if n_batches["first"] == 5 and not n_batches["second"]:
            raise KeyboardInterrupt
        return draw(self, *args)

    monkeypatch.setattr(FlowPhase, "batch", die_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, other, budget=often)
    resumes = [p for p in other.list(f"_staging/train/{whole.key}/resume") if p.count("/") == 4]
    assert [p.rpartition("/")[2] for p in resumes] == ["000000004.json"], "older ones are dropped"
    resumed = run(dataset, other)
    assert n_batches["second"] == 2, "steps 5 and 6 alone were taken"
    assert resumed.digest == whole.digest
    curves = read_training(whole, store)
    assert curves is not None
    assert curves == read_training(resumed, other)
    assert [step for step, _ in curves.curves[0].points] == [1, 2, 3, 4, 5, 6]
    assert read_training(None, store) is None
    assert not other.list(f"_staging/train/{whole.key}/resume")


def test_damaged_checkpoint_is_passed_over_and_training_starts_afresh(
    dataset: DatasetRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(dataset, store)
    store.delete(whole.path)
    folder = f"_staging/train/{whole.key}/resume"
    store.put(f"{folder}/000000004.json", b"{ half a rec")
    assert run(dataset, store).digest == whole.digest
    assert "is skipped" in caplog.text


def test_candidates_are_images_in_the_source_s_columns(dataset: DatasetRef, store: Store) -> None:
    ref = run(dataset, store)
    drawn = sample(ref, counts={"bright": 5, "dark": 2}, seed=1, store=store, dataset=dataset)
    assert drawn.class_counts == {"bright": 5, "dark": 2}
    info = load_info(drawn, store)
    assert (info.modality, info.image is not None) == ("image", True)
    table = read_part(store, info, ["candidates"])
    assert table.column_names[:2] == ["image", "label"]
    assert table.schema.field("image").type == IMAGE
    for record in table.to_pylist():
        pixels = decode_image(record["image"]["bytes"])
        assert pixels.shape == (12, 12, 1)
        assert record["image"]["path"] == f"synthetic/{record['aug_id']}.png"


@pytest.mark.slow
def test_more_candidates_extend_the_ones_there_are(
    dataset: DatasetRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across receipts that split a micro-batch."""
    monkeypatch.setattr(sample_stage, "BATCH_IMAGES", 50)
    ref = run(dataset, store)

    def images(**counts: int) -> dict[tuple[str, int], bytes]:
        info = load_info(sample(ref, counts=counts, seed=1, store=store, dataset=dataset), store)
        return {
            (r["aug_stratum"], r["aug_ordinal"]): r["image"]["bytes"]
            for r in read_part(store, info, ["candidates"]).to_pylist()
        }

    few, many = images(bright=3, dark=70), images(bright=90, dark=80)
    assert len(few) == 73
    assert len(many) == 170
    assert all(many[place] == data for place, data in few.items())


@pytest.mark.slow
def test_auto_declines_small_budgets_and_large_images_and_says_why(
    dataset: DatasetRef, store: Store, tmp_path: Path
) -> None:
    def why(dataset: DatasetRef, store: Store, budget: Budget) -> str:
        return why_no_image_model(
            experiment_of(dataset, PLAN, model=AutoModel(), budget=budget, seed=3), store
        )

    minute = Budget(minutes=0.1, device="cpu")
    assert "raise budget.minutes" in why(dataset, store, minute)
    assert why(dataset, store, Budget(steps=10_000, batch_size=64, device="cpu")) == ""
    other = open_store(str(tmp_path / "large"))
    large = staged(other, size=40)
    assert "40×40 px" in why(large, other, Budget(steps=10_000, batch_size=64, device="cpu"))


def test_auto_trains_on_a_gpu_whatever_the_size_and_budget(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "choose_device", lambda *_: devices.Device("cuda"))
    large = staged(store, size=40)
    asked = experiment_of(large, PLAN, model=AutoModel(), budget=Budget(minutes=0.1), seed=3)
    assert why_no_image_model(asked, store) == ""


def test_a_model_of_tables_is_refused_for_images(dataset: DatasetRef, store: Store) -> None:
    with pytest.raises(ParameterError, match="'trees' makes table data"):
        run(dataset, store, model=TreesModel())

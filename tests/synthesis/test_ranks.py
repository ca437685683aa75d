"""Two processes that train together: the loss of one process, and the same bytes again."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from support.staging import class_plan, people, plan_of, stage_parts
from support.steps import experiment_of

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.errors import LostRankError, ParameterError  # noqa: E402
from prefect_augment.genmodels.base import (  # noqa: E402
    FitContext,
    GenerativeModel,
    ImageData,
    ImageSpec,
    TableData,
    TableSpec,
)
from prefect_augment.genmodels.images.gan import ImageGan  # noqa: E402
from prefect_augment.genmodels.tables.flow import TableFlow  # noqa: E402
from prefect_augment.nn import loop  # noqa: E402
from prefect_augment.params import Budget, FlowModel, GanModel  # noqa: E402
from prefect_augment.storage import Store  # noqa: E402
from prefect_augment.synthesis.ranks import _lost, _Rank, check_devices, fit_on_ranks  # noqa: E402
from prefect_augment.synthesis.train import _Job  # noqa: E402

COUNTS = (60, 20)
CLASSES = np.repeat([0, 1], COUNTS).astype(np.int64)
STEPS = 20


def images() -> tuple[GenerativeModel, ImageData]:
    """A generator and a critic, which have an optimiser each."""
    level = np.where(CLASSES == 0, 60, 190)[:, None, None, None]
    noise = np.random.default_rng(0).normal(0, 20, (80, 8, 8, 1))
    data = ImageData(np.clip(level + noise, 0, 255).astype(np.uint8), CLASSES)
    spec = ImageSpec(8, 1, ("dark", "bright"), COUNTS)
    return ImageGan.build(GanModel(width=8, n_latent=4), spec), data


def table() -> tuple[GenerativeModel, TableData]:
    """Codes and scores, the scores of every second record."""
    rng = np.random.default_rng(0)
    X = np.stack([CLASSES + rng.normal(0, 0.5, 80), rng.integers(0, 3, 80)], axis=1)
    spec = TableSpec(("size", "kind"), (False, True), (0, 3), ("a", "b"), COUNTS)
    return TableFlow.build(FlowModel(width=16, depth=1), spec), TableData(X, CLASSES)


def trained(
    make: Any, n_ranks: int, **changes: Any
) -> tuple[dict[str, list[float]], tuple[Any, dict[str, bytes]]]:
    """The curves that were reported, and the model's state."""
    curves: dict[str, list[float]] = {}

    def report(step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            if name.startswith("curve."):
                curves.setdefault(name, []).append(value)

    model, data = make()
    plain = {"seed": 1, "steps": STEPS, "batch_size": 16, "threads": 2, "precision": "float32"}
    ctx = FitContext(**{**plain, "report": report, **changes})
    if n_ranks == 1:
        model.fit(data, ctx)
    else:
        model = fit_on_ranks(model, data, ctx, n_ranks)
    config, arrays = model.state()
    return curves, (config, {name: a.tobytes() for name, a in arrays.items()})


@pytest.mark.slow
@pytest.mark.parametrize("make", [images, table])
def test_two_ranks_have_the_loss_of_one_process_and_resume_with_the_same_bytes(make: Any) -> None:
    kept: list[Any] = []

    def keep(state: Any) -> None:
        kept.append((json.loads(json.dumps(state[0])), copy.deepcopy(state[1])))

    alone, _ = trained(make, 1)
    curves, state = trained(make, 2, checkpoint=keep, checkpoint_seconds=0.0)
    assert curves.keys() == alone.keys()
    for name, curve in curves.items():
        assert len(curve) == STEPS
        assert curve[:3] == pytest.approx(alone[name][:3], rel=1e-4), name
        # The game of two networks makes the last bits of a sum a hundredth of the loss.
        assert curve == pytest.approx(alone[name], rel=0.05), name
    middle = next(s for s in kept if s[0]["step"] == STEPS // 2)
    rest, resumed = trained(make, 2, restored=middle)
    assert resumed == state
    assert rest == {name: curve[STEPS // 2 :] for name, curve in curves.items()}


@pytest.mark.slow
def test_two_ranks_give_the_bits_of_one_process_that_adds_the_same_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_halves(run: Any, name: str, optimizer: Any, batch: loop.Batch) -> Any:
        optimizer.zero_grad(set_to_none=True)
        halves = [tuple(t[i::2] for t in batch) for i in range(2)]
        return torch.stack([run._part(name, half, 0.5) for half in halves]).sum()

    together = trained(images, 2)
    monkeypatch.setattr(loop._Run, "_backward", by_halves)
    assert trained(images, 1, threads=1) == together


@pytest.mark.slow
def test_more_ranks_than_records_of_a_step() -> None:
    alone, _ = trained(table, 1, steps=2, batch_size=3)
    curves, _ = trained(table, 3, steps=2, batch_size=3)
    assert curves.keys() == alone.keys()
    assert np.isfinite(list(curves.values())).all()


@pytest.mark.slow
def test_an_error_in_a_rank_is_that_of_one_process() -> None:
    model, _ = images()
    other = ImageData(np.zeros((2, 9, 9, 1), np.uint8), np.array([0, 1]))
    with pytest.raises(ParameterError, match=r"expected uint8 images of shape \(2, 8, 8, 1\)"):
        fit_on_ranks(model, other, FitContext(seed=1, steps=2), 2)


def test_the_number_of_devices_is_in_the_key_of_a_network(store: Store) -> None:
    dataset = stage_parts(store, {"training": people()})
    plan = plan_of([class_plan("well")])

    def key(n: int) -> str:
        params = {"model": FlowModel(), "budget": Budget(steps=9, devices=n)}
        return _Job(experiment_of(dataset, plan, **params), store).stage.key

    assert key(1) == key(1) != key(2)


def test_the_end_of_a_lost_rank_is_told() -> None:
    class Ended:
        def wait(self) -> int:
            return -9

    lost = _lost(_Rank("rank 1 of 2", Ended(), None))  # type: ignore[arg-type]
    assert isinstance(lost, LostRankError)
    assert str(lost).startswith("rank 1 of 2 was lost (signal 9) while training; run again")


def test_more_devices_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(Budget(devices=2))
    check_devices(Budget(devices=3, device="cpu"))
    with pytest.raises(ParameterError, match=r"devices is 3, and this machine has 2 GPUs"):
        check_devices(Budget(devices=3))

"""What every registered model promises, whatever its algorithm."""

import copy
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.latent_models import encoding
from support.model_contract import CONDITIONS, ModelContract, as_bytes, seeds

from prefect_augment import GenerativeSampler
from prefect_augment.errors import AugmentError
from prefect_augment.genmodels.base import (
    Arrays,
    Calibrates,
    Config,
    FitContext,
    GenerativeModel,
    SamplesWithValues,
    TableData,
    TableSpec,
)
from prefect_augment.params import (
    AutoencoderModel,
    Budget,
    FlowModel,
    GanModel,
    MstModel,
    TreesModel,
    VaeModel,
)
from prefect_augment.registry import MODELS, load_model_class, model_kinds
from prefect_augment.synthesis.train import fit_model

# A new model adds its params with an effort that ends within a second or two.
SMALL: dict[str, tuple[Any, Budget]] = {
    "trees": (TreesModel(), Budget()),
    "flow": (
        FlowModel(width=48, depth=1, learning_rate=0.01),
        Budget(steps=300, batch_size=64, device="cpu"),
    ),
    "mst": (MstModel(epsilon=50.0, bounds_from="data"), Budget()),
    "vae": (
        VaeModel(width=48, depth=1, learning_rate=0.01),
        Budget(steps=160, batch_size=64, device="cpu"),
    ),
    "gan": (
        GanModel(width=48, depth=1, critic_steps=1, learning_rate=0.01),
        Budget(steps=100, batch_size=64, device="cpu"),
    ),
    "autoencoder": (
        AutoencoderModel(width=48, depth=1, learning_rate=0.01),
        Budget(steps=160, batch_size=64, device="cpu"),
    ),
}

PACKAGES = {"dp": "opendp"}  # of extras with a name of their own
N_LEVELS = 4
SPEC = TableSpec(
    names=("number", "atoms", "category", "whole", "constant", "empty", "lone"),
    is_category=(False, False, True, False, False, False, True),
    n_levels=(0, 0, N_LEVELS, 0, 0, 0, 1),
    classes=("head", "middle", "tail"),
    class_counts=(180, 80, 8),
)


def records(counts: tuple[int, ...] = SPEC.class_counts) -> TableData:
    """Columns of all kinds whose mean or levels follow the class; level 3 never occurs."""
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(len(counts)), counts)
    n = len(y)
    number = rng.normal(loc=10.0 * y)
    X = np.column_stack(
        [
            np.where(rng.random(n) < 0.2, np.nan, number),
            np.where(rng.random(n) < 0.5, 0.0, rng.exponential(size=n)),
            np.where(rng.random(n) < 0.1, np.nan, np.minimum(2, y + rng.integers(0, 2, n))),
            np.round(number * 3),
            np.full(n, 7.0),
            np.full(n, np.nan),
            np.zeros(n),
        ]
    )
    return TableData(X, y.astype(np.int64))


def fitted(
    kind: str, data: TableData, spec: TableSpec = SPEC, *, steps: int = 0
) -> GenerativeModel:
    """The model, fitted with its effort above, or for so many steps where nobody looks at its records."""
    params, budget = SMALL[kind]
    return fit_model(data, spec, params, 1, budget=shortened(budget, steps))


def shortened(budget: Budget, steps: int) -> Budget:
    return budget.model_copy(update={"steps": steps}) if steps and budget.steps else budget


@pytest.fixture(scope="module", params=model_kinds("table"))
def kind(request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    if extra := MODELS[kind].extra:
        pytest.importorskip(PACKAGES.get(extra, extra), reason=f"the extra {extra!r}")
    return kind


@pytest.mark.slow
def test_no_value_of_one_person_comes_out(kind: str) -> None:
    """Planted texts, dates, numbers and levels, each of a single record; all but the class is drawn."""
    rng = np.random.default_rng(2)
    y = pd.Series(np.repeat(["head", "tail"], (150, 50)))
    wide = rng.normal(size=200) ** 3
    texts = rng.choice(["north", "south", "east"], 200).astype(object)
    texts[::40] = [f"person {i}" for i in range(5)]
    X = pd.DataFrame(
        {
            "number": wide,
            "single": wide.astype(np.float32),
            "money": np.round(np.exp(4 + wide / 9), 2),
            "age": rng.integers(20, 70, 200),
            "mostly zero": np.where(rng.random(200) < 0.7, 0.0, wide),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, 200), "D"),
            "place": texts,
            "category": pd.Categorical(texts),
        }
    )
    params, budget = SMALL[kind]
    sampler = GenerativeSampler(
        kind,
        random_state=0,
        model_params=params.model_dump(exclude={"kind"}),
        budget=shortened(budget, 40).model_dump(),
    )
    new, _ = sampler.fit(X, y).sample({"head": 600, "tail": 600})
    for name in X:
        counts = X[name].value_counts()
        rare = counts.index[counts < (5 if name in ("place", "category") else 2)]
        assert len(rare) > 3
        assert not set(rare) & set(new[name]), name


@pytest.fixture(scope="module")
def model(kind: str) -> GenerativeModel:
    return fitted(kind, records())


def test_every_registered_table_model_is_under_contract() -> None:
    assert set(model_kinds("table")) == set(SMALL)


class TestTables(ModelContract):
    modality, spec, small = "table", SPEC, SMALL
    X, y = records().X, records().y
    foreign = np.zeros((2, 3)), "7 columns"

    def fitted(self, kind: str) -> GenerativeModel:
        return fitted(kind, records())

    def fit_nothing(self, kind: str) -> None:
        fitted(kind, TableData(np.empty((0, SPEC.n_columns)), np.empty(0, dtype=np.int64)))


@pytest.mark.slow
def test_one_record_per_condition_in_their_order(model: GenerativeModel) -> None:
    X = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    assert X.shape == (len(CONDITIONS), SPEC.n_columns)
    assert X.dtype == np.float64
    means = [np.nanmean(X[k == CONDITIONS, 0]) for k in range(3)]
    assert means == sorted(means)
    assert means[1] - means[0] > 5  # the classes' means are 10 apart: the label steers the record


@pytest.mark.slow
def test_values_stay_in_their_columns_domain(model: GenerativeModel) -> None:
    data, X = records(), model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    seen = set(data.X[~np.isnan(data.X[:, 2]), 2])
    assert set(X[~np.isnan(X[:, 2]), 2]) <= seen
    assert (X[:, 4] == 7.0).all()
    assert np.isnan(X[:, 5]).all()
    assert (X[:, 6] == 0.0).all()
    assert not np.isnan(X[:, [1, 3]]).any(), "nothing is missing where nothing was"
    for j in (0, 1, 3):
        drawn = X[~np.isnan(X[:, j]), j]
        assert drawn.min() >= np.nanmin(data.X[:, j])
        assert drawn.max() <= np.nanmax(data.X[:, j])


@pytest.mark.slow
def test_missing_values_are_drawn_about_as_often_as_seen(model: GenerativeModel) -> None:
    X = model.sample(np.zeros(2000, dtype=np.int64), seeds=seeds(2000))
    assert np.isnan(X[:, 0]).mean() == pytest.approx(0.2, abs=0.08)


@pytest.mark.slow
def test_same_seed_same_record_and_other_seeds_other_records(model: GenerativeModel) -> None:
    once = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    again = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    other = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS), start=10_000))
    assert once.tobytes() == again.tobytes()
    assert len(np.unique(once[:, 1])) > len(once) / 4
    assert once.tobytes() != other.tobytes()


@pytest.mark.slow
def test_a_record_does_not_depend_on_the_others_of_its_batch(model: GenerativeModel) -> None:
    """Any candidate can be made again by itself, from model, class and seed."""
    if model.trained_in_steps:
        pytest.skip("a network's bits depend on the place in the micro-batch: the next test")
    all_at_once = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    order = np.random.default_rng(0).permutation(len(CONDITIONS))
    shuffled = model.sample(CONDITIONS[order], seeds=seeds(len(CONDITIONS))[order])
    assert shuffled.tobytes() == all_at_once[order].tobytes()
    for i in (0, 1, 7):
        alone = model.sample(CONDITIONS[i : i + 1], seeds=seeds(len(CONDITIONS))[i : i + 1])
        assert alone.tobytes() == all_at_once[i : i + 1].tobytes()


@pytest.mark.slow
def test_a_record_at_its_place_does_not_depend_on_the_others(model: GenerativeModel) -> None:
    """What stages rely on: whole micro-batches are drawn, and what is not wanted is dropped."""
    all_at_once = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    kept = np.arange(len(CONDITIONS)) % 3 == 1
    other_seeds = np.where(kept, seeds(len(CONDITIONS)), seeds(len(CONDITIONS), start=50_000))
    others = model.sample(np.where(kept, CONDITIONS, 0), seeds=other_seeds)
    assert others[kept].tobytes() == all_at_once[kept].tobytes()
    fewer = model.sample(CONDITIONS[:7], seeds=seeds(7))
    assert fewer.tobytes() == all_at_once[:7].tobytes()


def test_a_single_class_is_enough(kind: str) -> None:
    spec = TableSpec(SPEC.names, SPEC.is_category, SPEC.n_levels, ("only",), (60,))
    model = fitted(kind, records((60,)), spec, steps=10)
    X = model.sample(np.zeros(5, dtype=np.int64), seeds=seeds(5))
    assert X.shape == (5, SPEC.n_columns)


@pytest.mark.slow
@pytest.mark.parametrize("n_tail", [1, 2, 5])
def test_a_class_too_small_to_be_sampled_does_not_spoil_the_others(kind: str, n_tail: int) -> None:
    counts = (100, 40, n_tail)
    spec = TableSpec(SPEC.names, SPEC.is_category, SPEC.n_levels, SPEC.classes, counts)
    data = records(counts)
    X = fitted(kind, data, spec).sample(np.repeat([0, 1, 2], 50), seeds=seeds(150))
    assert np.nanmean(X[50:100, 0]) - np.nanmean(X[:50, 0]) > 5
    # Stages do not ask for the tiny class; whoever does is given nothing out of range.
    for drawn, seen in zip(X[100:].T, data.X.T, strict=True):
        drawn, seen = drawn[~np.isnan(drawn)], seen[~np.isnan(seen)]
        assert drawn.size == 0 or seen.min() <= drawn.min() <= drawn.max() <= seen.max()


@pytest.mark.slow
def test_a_class_without_records_among_these_is_no_obstacle(kind: str) -> None:
    """A fold may lack a class that the spec names."""
    data = records()
    rows = data.y != 2
    model = fitted(kind, TableData(data.X[rows], data.y[rows]), steps=10)
    X = model.sample(np.array([0, 1]), seeds=seeds(2))
    assert X.shape == (2, SPEC.n_columns)


def test_only_the_class_and_no_column_is_a_table_too(kind: str) -> None:
    spec = TableSpec((), (), (), ("a", "b"), (5, 5))
    model = fitted(kind, TableData(np.empty((10, 0)), np.repeat([0, 1], 5)), spec, steps=10)
    assert model.sample(np.array([0, 1, 1]), seeds=seeds(3)).shape == (3, 0)


@pytest.mark.slow
def test_progress_is_reported_in_steps(kind: str) -> None:
    heard: list[int] = []
    params, budget = SMALL[kind]
    model = load_model_class(kind, modality="table").build(params, SPEC)
    context = FitContext(
        seed=0, steps=min(budget.steps, 40), report=lambda step, scalars: heard.append(step)
    )
    model.fit(records(), context)
    assert heard == sorted(heard)
    assert heard[-1] == model.n_steps


@pytest.mark.slow
def test_killed_and_resumed_training_gives_the_bits_of_the_uninterrupted(kind: str) -> None:
    params, _ = SMALL[kind]
    if not load_model_class(kind, modality="table").trained_in_steps:
        pytest.skip("fitted in one go")

    def trained(**changes: Any) -> GenerativeModel:
        model: GenerativeModel = load_model_class(kind, modality="table").build(params, SPEC)
        plain = {"seed": 1, "steps": 40, "batch_size": 32, "threads": 1}
        model.fit(records(), FitContext(**{**plain, **changes}))
        return model

    finished = trained()
    whole_config, whole = finished.state()
    # Also just before its end, which may lie before the budget's.
    for last in (1, finished.n_steps // 2, finished.n_steps - 1):
        kept: list[tuple[Config, Arrays]] = []

        def keep_and_die(state: tuple[Config, Arrays], last: int = last, kept: Any = kept) -> None:
            # As it comes back from storage, where memory's order is always C.
            config = json.loads(json.dumps(copy.deepcopy(state[0])))
            kept.append((config, {k: v.copy("C") for k, v in state[1].items()}))
            if state[0]["step"] == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(checkpoint=keep_and_die, checkpoint_seconds=0.0)
        resumed_config, resumed = trained(restored=kept[-1]).state()
        assert resumed_config == whole_config
        assert as_bytes(resumed) == as_bytes(whole)


def test_calibration_says_how_the_machine_trains_and_is_obeyed(kind: str) -> None:
    model = load_model_class(kind, modality="table").build(SMALL[kind][0], SPEC)
    if not isinstance(model, Calibrates):
        pytest.skip("fitted in one go")
    measured = model.calibrate(records(), FitContext(seed=1, batch_size=32))
    assert measured.steps == 0
    assert measured.seconds_per_step > 0
    assert measured.batch_size == 32
    assert model.n_steps == 0, "as untrained as before"
    given = model.calibrate(records(), FitContext(seed=1, steps=7))
    assert (given.steps, given.seconds_per_step) == (7, 0.0)
    assert given.n_images == 7 * given.batch_size > 0


# Ways of drawing that an engine has beside its own on the records above: params, budget, records.
WAYS: dict[str, tuple[Any, Budget, tuple[int, ...]]] = {
    "autoencoder, interpolated": (
        AutoencoderModel(width=48, depth=1, learning_rate=0.01, drawn_by="neighbours"),
        Budget(steps=160, batch_size=64, device="cpu"),
        SPEC.class_counts,
    ),
    "vae, one of several draws": (
        VaeModel(width=48, depth=1, learning_rate=0.01),
        Budget(steps=160, batch_size=64, device="cpu"),
        (700, 300, 40),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_drawing_keeps_the_promises(way: str) -> None:
    kind = way.partition(",")[0]
    if extra := MODELS[kind].extra:
        pytest.importorskip(PACKAGES.get(extra, extra), reason=f"the extra {extra!r}")
    params, budget, counts = WAYS[way]
    model = fit_model(records(counts), SPEC, params, 1, budget=budget)
    test_one_record_per_condition_in_their_order(model)
    test_missing_values_are_drawn_about_as_often_as_seen(model)
    test_same_seed_same_record_and_other_seeds_other_records(model)
    test_a_record_at_its_place_does_not_depend_on_the_others(model)
    contract = TestTables()
    contract.test_state_is_json_and_arrays_and_samples_the_same_bits(kind, model)
    contract.test_an_empty_request_gives_no_record(model)
    contract.test_unknown_classes_missing_seeds_and_no_records_are_refused(kind, model)
    again = fit_model(records(counts), SPEC, params, 1, budget=budget).state()[1]
    for name, array in model.state()[1].items():
        assert again[name].tobytes() == array.tobytes()
    # A class of one record is no obstacle.
    short = shortened(budget, 10)
    lone = fit_model(records((*counts[:2], 1)), SPEC, params, 1, budget=short)
    assert lone.sample(np.array([2, 0, 2]), seeds=seeds(3)).shape == (3, SPEC.n_columns)


# --- given values, levels that were never seen, other devices -------------------------------------


def given_model(model: GenerativeModel) -> SamplesWithValues:
    if not isinstance(model, SamplesWithValues):
        pytest.skip("draws no given values by itself: stages draw, and keep those that have them")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("given", [{2: 1.0}, {1: 0.0}, {2: np.nan, 1: 0.0}, {0: 10.5}, {4: 7.0}])
def test_given_values_are_in_every_record(model: GenerativeModel, given: dict[int, float]) -> None:
    n = 4096
    kept, X = given_model(model).sample_with_values(
        np.full(n, 1, dtype=np.int64), seeds=seeds(n), values=given
    )
    assert 0 < len(kept) == len(X)
    assert (np.diff(kept) > 0).all()
    for j, value in given.items():
        assert np.array_equal(X[:, j], np.full(len(X), value), equal_nan=True)
    again, same = given_model(model).sample_with_values(
        np.full(n, 1, dtype=np.int64), seeds=seeds(n), values=given
    )
    assert again.tolist() == kept.tolist()
    assert same.tobytes() == X.tobytes()


@pytest.mark.slow
def test_a_level_that_was_never_seen_is_neither_drawn_nor_given(model: GenerativeModel) -> None:
    """The encoder knows level 3 from validation records, say; no training record has it."""
    X = model.sample(np.repeat([0, 1, 2], 500), seeds=seeds(1500))
    assert not (X[:, 2] == 3).any()
    with pytest.raises(AugmentError, match="'category'"):
        given_model(model).sample_with_values(np.array([0]), seeds=seeds(1), values={2: 3.0})


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_model_loaded_for_a_device_draws_and_is_kept_again(
    kind: str, model: GenerativeModel, device: str
) -> None:
    config, arrays = model.state()
    moved = load_model_class(kind, modality="table").from_state(config, arrays, device=device)
    again = moved.state()[1]
    assert as_bytes(again) == as_bytes(arrays)
    there = moved.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    here = model.sample(CONDITIONS, seeds=seeds(len(CONDITIONS)))
    if device == "cpu":
        assert there.tobytes() == here.tobytes()
    # On another device sums are rounded otherwise: a few values near a border fall elsewhere.
    same = np.isclose(there, here, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert same.mean() > 0.95


@pytest.mark.gpu
def test_a_model_trained_on_a_gpu_draws_on_the_cpu(kind: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    params, budget = SMALL[kind]
    there = fit_model(
        records(), SPEC, params, 1, budget=budget.model_copy(update={"device": "cuda"})
    )
    config, arrays = there.state()
    here = load_model_class(kind, modality="table").from_state(config, arrays, device="cpu")
    drawn = [m.sample(CONDITIONS, seeds=seeds(len(CONDITIONS))) for m in (there, here)]
    same = np.isclose(drawn[0], drawn[1], rtol=1e-3, atol=1e-3, equal_nan=True)
    assert same.mean() > 0.95
    assert np.isnan(drawn[1][:, 5]).all()


@pytest.mark.slow
def test_classes_can_be_told_from_the_latent_vectors(model: GenerativeModel) -> None:
    encodes, data = encoding(model), records()
    Z, rows = encodes.embed(data.X), np.arange(len(data.y)) % 2 == 0
    estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    assert estimator.fit(Z[rows], data.y[rows]).score(Z[~rows], data.y[~rows]) > 0.9


@pytest.mark.slow
def test_a_decoded_record_is_like_the_one_embedded(model: GenerativeModel) -> None:
    encodes, data = encoding(model), records()
    X = encodes.decode_latents(encodes.embed(data.X), data.y)
    assert X.shape == data.X.shape
    assert X.dtype == np.float64
    assert (X[:, 4] == 7.0).all()
    assert np.isnan(X[:, 5]).all()
    whole = np.corrcoef(X[:, 3], data.X[:, 3])[0, 1]
    assert whole > 0.9, "a column of much variance comes back"
    again = encodes.decode_latents(encodes.embed(data.X), data.y)
    assert again.tobytes() == X.tobytes()


@pytest.mark.slow
def test_strange_records_have_high_anomaly_scores(model: GenerativeModel) -> None:
    encodes, data = encoding(model), records()
    usual = encodes.anomaly_scores(data.X)
    assert usual.shape == (len(data.X),)
    assert usual.dtype == np.float64
    # A number of the tail beside a category and a whole of the head.
    strange = data.X[data.y == 0].copy()
    strange[:, 0] = 20.0
    assert (encodes.anomaly_scores(strange) > np.median(usual)).mean() > 0.9


@pytest.mark.slow
def test_what_no_record_had_is_embedded_and_strange_numbers_are_finite(
    model: GenerativeModel,
) -> None:
    """An unseen level, a null where there was none, and a number out of all bounds."""
    encodes, X = encoding(model), records().X[:4].copy()
    X[0, 2], X[1, 1], X[2, 3], X[3, 0] = 3.0, np.nan, 1e300, -1e300
    assert np.isfinite(encodes.embed(X)).all()
    assert np.isfinite(encodes.anomaly_scores(X)).all()

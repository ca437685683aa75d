"""The measure that a run asks for: by name, by a small model, by a function."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import yaml
from sklearn import metrics

from prefect_augment import registry
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.metrics import chosen_measure
from prefect_augment.evaluation.metrics.chosen_measure import check_metric, measure_of
from prefect_augment.evaluation.metrics.thresholds import tune_multipliers
from prefect_augment.params import Evaluation, Metric

CLASSES = ("no", "yes", "maybe")
COUNTS = np.array([900, 40, 60])
TWO, THREE = np.array([True, True, False]), np.ones(3, dtype=bool)


def chosen(metric, compared=TWO):
    return measure_of(
        Evaluation(metric=metric).metric, classes=CLASSES, compared=compared, counts=COUNTS
    )


def made_up(seed=0, n=200):
    rng = np.random.default_rng(seed)
    y = rng.choice(2, size=n, p=[0.8, 0.2])
    proba = np.column_stack([rng.dirichlet([2.0, 1.0], size=n), np.zeros(n)])
    proba[:, :2] += 0.4 * np.eye(2)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    return y, proba, np.argmax(proba, axis=1), rng.exponential(size=n)


def share_right(y_true, proba, classes):
    return float(np.mean(np.asarray(classes)[np.argmax(proba, axis=1)] == y_true))


def weighted_error(y_true, proba, classes, sample_weight=None):
    wrong = np.asarray(classes)[np.argmax(proba, axis=1)] != y_true
    return np.average(wrong, weights=sample_weight)


def fails(y_true, proba, classes):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("text", "title", "higher"),
    [
        ("macro_f1", "macro F1", True),
        ("{name: f_beta, beta: 2}", "F2 of yes", True),
        ("average_precision", "average precision", True),
        ("{name: recall_at_precision, precision: 0.9, label: 'no'}", "recall at 90 % precision of no", True),
        ("{name: precision_at_recall, recall: 0.75}", "precision at 75 % recall of yes", True),
        ("log_loss", "log loss", False),
        ("{name: cost, matrix: {'yes': {'no': 5}, 'no': {'yes': 1}}}", "mean cost", False),
        ("matthews_corrcoef", "matthews corrcoef", True),
    ],
)  # fmt: skip
def test_a_metric_is_a_name_or_a_small_mapping_as_in_yaml(text, title, higher):
    measure = chosen(yaml.safe_load(text))
    assert (measure.title, measure.higher_is_better) == (title, higher)
    assert np.isfinite(measure.value(*made_up()[:3]))


def test_the_class_of_a_measure_is_the_rarest_compared_one_unless_named():
    y, proba, decided, w = made_up()
    f1 = chosen("f_beta").value(y, proba, decided, w)
    assert f1 == pytest.approx(metrics.f1_score(y, decided, sample_weight=w))
    assert chosen({"name": "f_beta", "label": "no"}).value(y, proba, decided, w) == pytest.approx(
        metrics.f1_score(y, decided, pos_label=0, sample_weight=w)
    )
    assert chosen("f_beta", np.array([True, False, True])).title == "F1 of maybe"


def test_a_cost_matrix_goes_by_class_names():
    y, proba, decided, _ = made_up()
    measure = chosen({"name": "cost", "matrix": {"yes": {"no": 5}, "no": {"yes": 1}}})
    missed, alarms = np.sum((y == 1) & (decided == 0)), np.sum((y == 0) & (decided == 1))
    assert measure.value(y, proba, decided) == pytest.approx((5 * missed + alarms) / len(y))
    rows = [{"true": "yes", "predicted": "no", "cost": 5}, {"true": "no", "predicted": "yes", "cost": 1}]  # fmt: skip
    assert Metric(name="cost", matrix=rows) == Metric(
        name="cost", matrix={"yes": {"no": 5}, "no": {"yes": 1}}
    )


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("balanced_acuracy", "did you mean 'balanced_accuracy'"),
        ("neg_mean_squared_error", "there is no metric"),
        ({"name": "recall_at_precision", "label": "yse"}, "do not have: did you mean 'yes'"),
        ({"name": "cost", "matrix": {"yes": {"on": 5}}}, "class 'on', which the data do not have"),
        ({"name": "f_beta", "label": "maybe"}, "too few records to be compared; choose one of: no, yes"),
        ({"name": "macro_f1", "label": "yes"}, "not about one class"),
        ({"function": "no_such_module:f"}, "PREFECT_AUGMENT_ALLOW_IMPORT_PATHS"),
        (fails, "fails on 8 made-up records of 2 classes: KeyError: 'no such thing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_says_what_to_do(metric, words):
    with pytest.raises(ParameterError, match=words):
        chosen(metric)


def test_a_scorer_of_two_classes_is_refused_for_three():
    with pytest.raises(ParameterError, match="scorer 'f1' does not work with 3 classes"):
        chosen("f1", THREE)


@pytest.mark.parametrize("name", ["f1", "jaccard", "neg_brier_score", "f1_macro"])
def test_a_scorer_of_scikit_learns_takes_the_rarer_class_as_positive(name):
    y, proba, decided, w = made_up()
    expected = {
        "f1": lambda w: metrics.f1_score(y, decided, sample_weight=w),
        "jaccard": lambda w: metrics.jaccard_score(y, decided, sample_weight=w),
        "neg_brier_score": lambda w: -metrics.brier_score_loss(y, proba[:, 1], sample_weight=w),
        "f1_macro": lambda w: metrics.f1_score(y, decided, sample_weight=w, average="macro"),
    }[name]
    measure = chosen(name)
    assert measure.value(y, proba, decided) == pytest.approx(expected(None))
    found = measure.values(y, proba, decided, np.stack([w, 2 * w]))
    assert found == pytest.approx([expected(w)] * 2)


@pytest.mark.parametrize("name", chosen_measure._scorers())
def test_every_scorer_is_computed_of_two_classes_and_tunes_thresholds(name):
    y, proba, decided, w = made_up(n=60)
    measure = chosen(name)
    assert np.isfinite(measure.values(y, proba, decided, w[None])).all()
    assert np.isfinite(tune_multipliers(y, proba, compared=TWO, measure=measure)).all()


def test_a_scorer_that_takes_no_weights_of_several_classes_repeats_records():
    y = np.repeat(np.arange(3), 20)
    proba = np.random.default_rng(0).dirichlet(np.ones(3), 60) + np.eye(3)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    found = chosen("roc_auc_ovo", THREE).value(y, proba, y)
    assert found == pytest.approx(metrics.roc_auc_score(y, proba, multi_class="ovo"))


@pytest.mark.parametrize("name", ["rand_score", "mutual_info_score", "r2", "f1_samples"])
def test_scorers_of_clusters_numbers_and_sets_of_labels_are_no_metrics(name):
    with pytest.raises(ParameterError, match="there is no metric"):
        chosen(name)


def test_a_function_given_in_python_is_called_with_names_and_probabilities():
    y, proba, decided, w = made_up()
    right = chosen(share_right)
    assert right.value(y, proba, decided) == pytest.approx(np.mean(decided == y))
    assert right.name.endswith(":share_right")
    times = np.round(w).astype(int)  # no weights are passed: records are repeated
    repeated = np.repeat(decided == y, times).mean()
    assert right.value(y, proba, decided, times) == pytest.approx(repeated)
    error = chosen({**Metric.model_validate(weighted_error).model_dump(), "lower_is_better": True})
    assert error.oriented(error.value(y, proba, decided, w)) == pytest.approx(
        -np.average(decided != y, weights=w)
    )


def test_index_draws_have_the_spread_of_the_weights():
    """Without weights of its own a function gets records by places: 1 % more spread in theory."""
    y, proba, decided, _ = made_up(1)
    W = np.random.default_rng(2).exponential(size=(400, len(y)))
    weighed, placed = (
        chosen(f).values(y, proba, decided, W).std() for f in (weighted_error, share_right)
    )
    assert placed == pytest.approx(weighed, rel=0.04)


def test_the_source_of_a_function_is_its_version(monkeypatch):
    first = Metric.model_validate(share_right)
    assert first.version == Metric.model_validate(share_right).version != ""
    assert Metric.model_validate(weighted_error).version != first.version
    with pytest.raises(ValueError, match="top level of a module"):
        Metric.model_validate(lambda y, p, c: 1.0)


def test_an_installed_package_or_an_import_path_offers_a_function(monkeypatch):
    point = EntryPoint("own_share", f"{__name__}:share_right", chosen_measure.ENTRY_POINTS)
    monkeypatch.setattr(type(point), "load", lambda self: share_right)
    for module in (registry, chosen_measure):
        monkeypatch.setattr(module, "entry_points", lambda group: [point])
    y, proba, decided, _ = made_up()
    assert chosen("own_share").value(y, proba, decided) == share_right(
        np.asarray(CLASSES)[y], proba, CLASSES
    )
    with pytest.raises(ParameterError, match="did you mean 'own_share'"):
        check_metric(Metric(name="own_shar"))
    monkeypatch.setenv(registry.ALLOW_IMPORT_PATHS, "1")
    with pytest.raises(ParameterError, match="cannot be imported"):
        check_metric(Metric(function="os.path:no_such_function"))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("{name: cost}", "belong together"),
        ("{name: cost, matrix: {yes: {no: 5}}}", "put quotes around the class"),
        ("{name: f_beta, label: yes}", "put quotes around the class"),
        ("{name: macro_f1, function: 'a:b'}", "leave one of them out"),
        ("{name: f_beta, beta: 0}", "greater than 0"),
        ("{nmae: macro_f1}", "nmae"),
    ],
)
def test_what_contradicts_itself_is_refused_in_the_form(metric, words):
    with pytest.raises(ValueError, match=words):
        Evaluation(metric=yaml.safe_load(metric))

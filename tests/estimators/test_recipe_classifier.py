"""``RecipeClassifier``: scikit-learn takes it for a classifier, and it does what the recipe says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from support.staging import recipe_of

from prefect_augment import Evaluation, RecipeClassifier
from prefect_augment.errors import ParameterError
from prefect_augment.schema import Recipe, Strategy

TRUE = {"common": 0.95, "rare": 0.05}
HALF = {"common": 0.5, "rare": 0.5}
SCALED = make_pipeline(StandardScaler(), LogisticRegression())


def recipe(family: Any = "weights", **changes: Any) -> Recipe:
    weights = {"common": 0.53, "rare": 10.0}
    fields = {"class_weight": weights, "prior_true": TRUE, "prior_train": HALF}
    return recipe_of("class weights", family, **(fields | changes))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Two normals, one class in twenty: a logistic regression is the right model of it."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(8000) < 0.05, "rare", "common")
    return rng.normal(size=(8000, 1)) + 2 * (y == "rare")[:, None], y


def truth(X: np.ndarray) -> np.ndarray:
    """The rare class's probability, by Bayes' rule."""
    odds = 0.05 / 0.95 * np.exp(2 * X[:, 0] - 2)
    return odds / (1 + odds)


def listed(checks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    names, values = checks.args
    return pytest.mark.parametrize(names, list(values), **checks.kwargs)


ESTIMATORS = [
    LogisticRegression(),
    GaussianNB(),
    DecisionTreeClassifier(random_state=0),
    ExtraTreesClassifier(5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5, random_state=0),
    KNeighborsClassifier(),
]


def cannot(classifier: RecipeClassifier) -> dict[str, str]:
    """Checks that cannot hold, with the reason."""
    if not isinstance(classifier.estimator, KNeighborsClassifier):
        return {}
    why = "it takes no weights, so records are drawn by them"
    kinds = ("dense", "sparse")
    return {f"check_sample_weight_equivalence_on_{kind}_data": why for kind in kinds}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # GaussianNB of one class
@listed(
    parametrize_with_checks([*map(RecipeClassifier, ESTIMATORS)], expected_failed_checks=cannot)
)
def test_scikit_learn_takes_it_for_a_classifier(
    estimator: Any, check: Callable[[Any], None]
) -> None:
    check(estimator)


def test_it_decides_as_balanced_and_gives_probabilities_as_they_are(data: Any) -> None:
    X, y = data
    model = RecipeClassifier(LogisticRegression(), recipe()).fit(X, y)
    plain = LogisticRegression().fit(X, y)
    found = balanced_accuracy_score(y, model.predict(X))
    assert found == pytest.approx(0.841, abs=0.02), "the best there is for these normals"
    assert found > balanced_accuracy_score(y, plain.predict(X)) + 0.1
    rare = model.predict_proba(X)[:, 1]
    assert np.abs(rare - truth(X)).mean() < 0.01
    raw = model.set_params(correct_prior=False).predict_proba(X)[:, 1]
    assert raw.mean() > 0.2, "uncorrected, the rare class seems five times as frequent"
    assert np.allclose(model.estimator_.predict_proba(X)[:, 1], raw)


def test_a_recipe_of_balanced_softmax_is_applied_after_training(data: Any) -> None:
    X, y = data
    softmax = recipe("loss", loss="balanced_softmax", class_weight={"common": 1.0, "rare": 1.0})
    model = RecipeClassifier(LogisticRegression(), softmax).fit(X, y)
    plain = LogisticRegression().fit(X, y)
    assert np.allclose(model.predict_proba(X), plain.predict_proba(X))
    assert balanced_accuracy_score(y, model.predict(X)) == pytest.approx(0.841, abs=0.02)


def test_multipliers_decide_and_leave_probabilities_alone(data: Any) -> None:
    X, y = data
    thresholds = {"logistic": {"common": 1.0, "rare": 19.0}, "boosting": {"rare": 1.0}}
    tuned = recipe("threshold", prior_train=TRUE, thresholds=thresholds)
    model = RecipeClassifier(LogisticRegression(), tuned, thresholds_of="logistic").fit(X, y)
    proba = model.predict_proba(X)
    assert np.array_equal(model.predict(X) == "rare", 19 * proba[:, 1] > proba[:, 0])
    assert np.allclose(proba, LogisticRegression().fit(X, y).predict_proba(X))
    with pytest.raises(ParameterError, match="not for ''; set estimator"):
        RecipeClassifier(LogisticRegression(), tuned, thresholds="recipe").fit(X, y)
    with pytest.raises(ParameterError, match="LinearSVC gives none"):
        RecipeClassifier(LinearSVC(), tuned, thresholds_of="logistic").fit(X, y)


def test_thresholds_are_fitted_for_the_estimator_that_uses_them(data: Any) -> None:
    """Those of another one would be wrong: here they would find no rare record at all."""
    X, y = data
    foreign = {"boosting": {"rare": 0.01}}
    tuned = recipe("threshold", prior_train=TRUE, thresholds=foreign)
    model = RecipeClassifier(LogisticRegression(), tuned, random_state=0).fit(X, y)
    assert balanced_accuracy_score(y, model.predict(X)) == pytest.approx(0.841, abs=0.02)
    assert np.array_equal(model.multipliers_, clone(model).fit(X, y).multipliers_)
    lent = model.set_params(thresholds="recipe").fit(X, y)
    assert (lent.predict(X) == "common").all()
    with pytest.raises(ParameterError, match="choose 'fit' or 'recipe'"):
        model.set_params(thresholds="best").fit(X, y)


def test_the_estimator_that_was_compared_keeps_the_recipes_thresholds(data: Any) -> None:
    X, y = data
    compared = SCALED
    own = Evaluation(estimators=[compared]).own_estimators[0]
    given = {"thresholds": {own.title: {"rare": 7.0}}, "estimators": {own.title: own.digest}}
    tuned = recipe("threshold", prior_train=TRUE, **given)
    assert RecipeClassifier(compared, tuned).fit(X, y).multipliers_.tolist() == [1.0, 7.0]
    other = clone(compared).set_params(logisticregression__C=0.01)
    assert RecipeClassifier(other, tuned).fit(X, y).multipliers_[1] != 7.0


def test_a_class_with_fewer_records_than_folds_keeps_its_probability() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 1)), np.array(["a"] * 45 + ["b"] * 13 + ["c"] * 2)
    shares = {"a": 45 / 60, "b": 13 / 60, "c": 2 / 60}
    given = {"prior_true": shares, "prior_train": shares}
    tuned = recipe("threshold", thresholds={"boosting": {"b": 2.0, "c": 9.0}}, **given)
    model = RecipeClassifier(LogisticRegression(), tuned, random_state=0).fit(X, y)
    assert model.multipliers_[2] == 1.0


def test_another_prior_moves_probabilities_to_it(data: Any) -> None:
    X, y = data
    model = RecipeClassifier(LogisticRegression(), recipe(), prior={"common": 80, "rare": 20})
    rare = model.fit(X, y).predict_proba(X)[:, 1]
    odds = 0.25 * np.exp(2 * X[:, 0] - 2)
    assert np.abs(rare - odds / (1 + odds)).mean() < 0.02
    with pytest.raises(ParameterError, match="no share of 'common'"):
        RecipeClassifier(LogisticRegression(), recipe(), prior={"rare": 0.2}).fit(X, y)


def test_given_weights_are_used_as_they_are(data: Any) -> None:
    X, y = data
    weights = np.where(y == "rare", 19.0, 1.0)
    given = RecipeClassifier(LogisticRegression(), recipe()).fit(X, y, sample_weight=weights)
    same = LogisticRegression().fit(X, y, sample_weight=weights)
    assert np.allclose(given.estimator_.coef_, same.coef_)
    # Those of the recipe bring the classes to the same shares.
    own = RecipeClassifier(LogisticRegression(), recipe()).fit(X, y)
    assert own.estimator_.intercept_ == pytest.approx(same.intercept_, abs=0.2)
    with pytest.raises(ParameterError, match="soft labels"):
        RecipeClassifier(LogisticRegression(), recipe(shares={"rare": 3.0})).fit(X, y)


@pytest.mark.parametrize(
    "estimator",
    [
        KNeighborsClassifier(25),
        SCALED,
        GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [25]}, cv=2),
        GridSearchCV(SCALED, {"logisticregression__C": [1.0]}, cv=2),
    ],
    ids=["draws", "pipeline", "search over draws", "search over a pipeline"],
)
def test_estimators_without_weights_and_pipelines_take_part(data: Any, estimator: Any) -> None:
    X, y = data
    model = RecipeClassifier(estimator, recipe(), random_state=0).fit(X, y)
    assert balanced_accuracy_score(y, model.predict(X)) > 0.8
    again = clone(model).fit(X, y)
    assert np.array_equal(model.predict(X), again.predict(X)), "a seed's draws are the same again"


def test_estimators_without_weights_keep_a_frames_columns_and_every_class() -> None:
    rng = np.random.default_rng(0)
    y = np.array(["common"] * 199 + ["rare"])
    X = pd.DataFrame({"x": rng.normal(size=200), "color": rng.choice(["red", "blue"], 200)})
    encoder = ColumnTransformer([("c", OneHotEncoder(), ["color"])], remainder="passthrough")
    never = recipe(class_weight={"common": 1.0, "rare": 1.0})
    for seed in range(10):
        drawn = make_pipeline(encoder, KNeighborsClassifier(3))
        model = RecipeClassifier(drawn, never, random_state=seed)
        assert model.fit(X, y).classes_.tolist() == ["common", "rare"]
        assert model.predict(X).shape == (200,)


def test_it_works_in_pipelines_searches_and_folds(data: Any) -> None:
    X, y = data
    inside = make_pipeline(StandardScaler(), RecipeClassifier(LogisticRegression(), recipe()))
    assert cross_val_score(inside, X, y, cv=3, scoring="balanced_accuracy").mean() > 0.8
    search = GridSearchCV(
        RecipeClassifier(LogisticRegression(), recipe()), {"estimator__C": [0.1, 1.0]}, cv=2
    )
    assert set(search.fit(X, y).best_params_) == {"estimator__C"}
    weights = np.ones(len(y))
    inside.fit(X, y, recipeclassifier__sample_weight=weights)


def test_the_content_of_a_recipe_file_will_do(data: Any) -> None:
    X, y = data
    loaded = recipe().model_dump(mode="json")
    a = RecipeClassifier(LogisticRegression(), loaded).fit(X, y)
    b = RecipeClassifier(LogisticRegression(), recipe()).fit(X, y)
    assert np.array_equal(a.predict_proba(X), b.predict_proba(X))
    with pytest.raises(ParameterError, match="recipe is a str"):
        RecipeClassifier(LogisticRegression(), "recipe.json").fit(X, y)


def test_a_class_that_the_recipe_does_not_know_is_named(data: Any) -> None:
    X, y = data
    other = np.where(np.arange(len(y)) < 50, "new", y)
    with pytest.raises(ParameterError, match="class 'new' is none of the recipe's"):
        RecipeClassifier(LogisticRegression(), recipe()).fit(X, other)


def test_a_recipe_of_clean_labels_audits_the_records_it_is_given() -> None:
    """A tree learns every wrong label; without those that are doubted it learns fewer of them."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(400, 2)), columns=["a", "b"])
    right = np.where(X["a"] > 0.5, "rare", "often")
    y = np.where(rng.random(400) < 0.1, np.where(right == "rare", "often", "rare"), right)
    shares = {"often": float(np.mean(y == "often")), "rare": float(np.mean(y == "rare"))}
    strategy = Strategy(name="clean labels", family="clean", doubted_weight=0.0)
    clean = recipe(strategy=strategy, prior_true=shares, prior_train=shares)
    tree = DecisionTreeClassifier(random_state=0)
    plain = RecipeClassifier(tree, random_state=0).fit(X, y)
    audited = RecipeClassifier(tree, clean, random_state=0).fit(X, y)
    wrong = [float(np.mean(m.predict(X) != right)) for m in (plain, audited)]
    assert wrong[1] < 0.5 * wrong[0]
    weights = np.ones(len(y))
    given = RecipeClassifier(tree, clean, random_state=0).fit(X, y, sample_weight=weights)
    assert (given.predict(X) == plain.predict(X)).all(), "given weights are used unchanged"


def test_a_recipe_of_soft_labels_relabels_real_records_and_weighs_the_classes() -> None:
    """Wrong labels mislead a plain tree; half of an ensemble's word about each record mends most of that."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=600), "kind": rng.choice(["x", "y"], 600)})
    right = np.where(X["a"] + 0.5 * (X["kind"] == "x") > 1, "rare", "often")
    y = np.where(rng.random(600) < 0.15, rng.choice(["rare", "often"], 600), right)
    X.loc[:9, "a"] = np.nan
    read = ColumnTransformer([("a", "passthrough", ["a"]), ("kind", OneHotEncoder(), ["kind"])])
    tree = make_pipeline(read, DecisionTreeClassifier(random_state=0))
    shares = {"often": float(np.mean(y == "often")), "rare": float(np.mean(y == "rare"))}
    soft = recipe("soft_labels", prior_true=shares, prior_train={"often": 0.5, "rare": 0.5})
    plain = RecipeClassifier(tree, random_state=0).fit(X, y)
    relabelled = RecipeClassifier(tree, soft, random_state=0).fit(X, y)
    lost = [log_loss(right, m.predict_proba(X), labels=m.classes_) for m in (plain, relabelled)]
    assert lost[1] < 0.6 * lost[0]
    weights = np.ones(len(y))
    again = RecipeClassifier(tree, soft, random_state=0).fit(X, y, sample_weight=weights)
    assert (again.predict_proba(X) == relabelled.predict_proba(X)).all(), "the recipe weighs"


def test_a_recipe_of_bags_trains_the_estimator_on_each(data: Any) -> None:
    X, y = data[0][:1500], data[1][:1500]
    bagged = recipe("bagging", thresholds={"boosting": {"common": 1.0, "rare": 1.0}})
    model = RecipeClassifier(
        DecisionTreeClassifier(random_state=0), bagged, correct_prior=False, random_state=0
    )
    members = model.set_params(thresholds="recipe").fit(X, y).estimator_.members
    assert len(members) == 10
    assert len({member.tree_.node_count for member in members}) > 1, "each saw other records"
    assert model.predict_proba(X)[:, 1].mean() > 2 * np.mean(y == "rare"), "bags are balanced"
    tree = RecipeClassifier(DecisionTreeClassifier(random_state=0), recipe(), random_state=0)
    test, right = data[0][1500:], data[1][1500:]
    scores = [balanced_accuracy_score(right, m.fit(X, y).predict(test)) for m in (tree, model)]
    assert scores[1] > scores[0] + 0.1
    again = clone(model).fit(X, y)
    assert (again.predict_proba(X) == model.predict_proba(X)).all()

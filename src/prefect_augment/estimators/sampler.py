"""``GenerativeSampler``: our table models as a sampler of imbalanced-learn.

It does what the tasks do, in memory: the encoder of :mod:`prefect_augment.encoding.tables`, a
registered model, one draw per wanted record, and for ``purpose="utility"`` the utility filter.
"""

import warnings
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, Self

import numpy as np
import pyarrow as pa
from imblearn.over_sampling.base import BaseOverSampler
from imblearn.utils import check_sampling_strategy, check_target_type
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.frames import Layout, kind_of, take_rows
from prefect_augment.encoding.rare_values import RareValues
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.classifiers.soft_label_ensemble import (
    class_balanced_weights,
    fit_teacher,
    soft_label_rows,
)
from prefect_augment.evaluation.quality.label_fidelity import utility_scores
from prefect_augment.evaluation.quality.record_filter import utility_filter
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, TableData
from prefect_augment.params import Budget, ColumnOverride, ModelParams
from prefect_augment.registry import MODELS, resolve_model
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.model_store import table_spec
from prefect_augment.synthesis.novelty import NearRows
from prefect_augment.synthesis.rejection import Kept, Keys, Rules, draw_kept
from prefect_augment.synthesis.train import fit_model

# Draw three times as many, keep the third most confidently of the class (docs: two purposes).
UTILITY_DRAWS = 3
# max_near="auto": for classes with fewer rows, allow as many near rows as among real ones, and only
# where at least this share of the draws would stay.
SMALL_CLASS = 50
AUTO_NEAR = 0.05
AUTO_ACCEPTED = 0.1


class GenerativeSampler(BaseOverSampler):  # type: ignore[misc]  # imbalanced-learn has no types
    """Over-sampling with records drawn from a generative model of the table.

    Unlike imbalanced-learn's own samplers it accepts missing values, text, categories, dates,
    identifiers (new rows get new ones), and classes of any size from one row up.

    Parameters
    ----------
    kind : str, default="trees"
        The model: ``auto``, ``trees``, ``flow``, ``vae``, ``gan``, ``autoencoder`` (all but trees need
        the extra ``torch``), or the name of a plug-in.
    sampling_strategy : float, str, dict or callable, default="auto"
        As for imbalanced-learn's over-samplers; ``auto`` brings every class up to the largest.
    purpose : {"utility", "faithful"}, default="utility"
        ``utility`` draws three times as many rows and keeps those that a classifier finds most like
        their class: for training. ``faithful`` keeps the class's distribution: for describing it.
    random_state : int, RandomState or None, default=None
        Of training, draws and filter.
    model_params : dict or None, default=None
        The model's own, such as ``{"min_leaf": 10}``.
    columns : list of ColumnOverride or dict, or None, default=None
        Corrections of column kinds: ``{"name": "zip", "kind": "category"}``.
        Columns of arrays are called ``x0``, ``x1`` …
    constraints : list of Constraint or dict, or None, default=None
        Every new row keeps these, such as ``{"kind": "inequality", "left": "from", "right": "to"}``.
    max_near : "auto", float or None, default="auto"
        Largest share of new rows that are nearer to a row of their class in ``X`` than the nearest 5 %
        of those rows are to one another: 0.05 is as many as among real rows, 0 rejects all of them.
        Rows equal to one of ``X`` stay as frequent as equal rows are in ``X``. ``auto`` is 0.05
        for classes with fewer than 50 rows, which models tend to copy, where at least a tenth of the
        draws would stay; None keeps rows as they are drawn.
    budget : Budget, dict or None, default=None
        For models that are trained in steps; its default takes minutes. Trees need none.

    Attributes
    ----------
    sampling_strategy_ : dict
        New rows by class.
    sample_indices_ : ndarray of int64, shape (n_real_rows,)
        Rows of ``X`` behind the first ``n_real_rows`` rows of the result: all of them, then the
        copies of classes too small to learn. The rest is new.
    model_ : GenerativeModel
        The fitted model; ``encoder_`` turns its matrix into columns.
    encoder_ : TableEncoder
    classes_ : ndarray, shape (n_classes,)
    summary_ : dict
        ``purpose``, ``kind``, and by class: ``drawn``, ``kept``, ``copied``, ``accepted`` (the share
        of draws that keep the constraints, and ``max_near``).
    n_features_in_ : int
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        Where all columns have names that are text.

    References
    ----------
    Lemaître, Nogueira & Aridas 2017, "Imbalanced-learn", JMLR 18(17): the interface.

    Examples
    --------
    >>> from imblearn.pipeline import make_pipeline
    >>> from sklearn.ensemble import HistGradientBoostingClassifier
    >>> model = make_pipeline(GenerativeSampler(random_state=0), HistGradientBoostingClassifier())
    """

    _parameter_constraints: dict[str, Any] = {  # noqa: RUF012 - scikit-learn's way
        **BaseOverSampler._parameter_constraints,
        "kind": [str],
        "purpose": [StrOptions({"utility", "faithful"})],
        "model_params": [dict, None],
        "columns": [list, tuple, None],
        "constraints": [list, tuple, None],
        "max_near": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="left"), None],
        "budget": [Budget, dict, None],
    }

    def __init__(
        self,
        kind: str = "trees",
        *,
        sampling_strategy: Any = "auto",
        purpose: str = "utility",
        random_state: Any = None,
        model_params: Any = None,
        columns: Any = None,
        constraints: Any = None,
        max_near: Any = "auto",
        budget: Any = None,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.kind = kind
        self.purpose = purpose
        self.random_state = random_state
        self.model_params = model_params
        self.columns = columns
        self.constraints = constraints
        self.max_near = max_near
        self.budget = budget

    def fit(self, X: Any, y: Any) -> Self:
        """Fit encoder and model; :meth:`sample` then draws rows.

        Parameters
        ----------
        X : array-like or frame, shape (n_rows, n_columns)
            numpy, pandas, polars, Arrow, or a list of lists; not sparse.
        y : array-like, shape (n_rows,)
            Classes; or one-vs-all, shape (n_rows, n_classes).

        Raises
        ------
        ValueError, AugmentError
            If parameters, ``X`` or ``y`` cannot be used; if a column, override or constraint does not fit.
        """
        self._fit(X, y)
        return self

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Resample: the rows of ``X``, then copies, then new rows by class, of the types of X and y.

        Takes and raises what :meth:`fit` does.
        """
        return self._fit_resample(X, y)

    def _fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        matrix, codes = self._fit(X, y)
        rng = np.random.default_rng(self._seed)
        copies, kept = [np.empty(0, dtype=np.int64)], {}
        taken = self._rules.taken()
        for name, n in self.sampling_strategy_.items():
            k = self._stratum(name)
            rows = np.flatnonzero(codes == k)
            if n and len(rows) < MIN_SAMPLED_RECORDS:
                copies.append(rng.choice(rows, n))
                self.summary_["copied"][self._names[k]] = int(n)
            elif n:
                factor = UTILITY_DRAWS if self.purpose == "utility" else 1
                kept[k] = self._draw_noted(k, factor * n, taken, least=n)
        if self.summary_["copied"]:
            warnings.warn(
                f"classes with fewer than {MIN_SAMPLED_RECORDS} rows are filled up with copies, since "
                f"no model can learn them: {self.summary_['copied']}. Merge them with another class, "
                "or leave them out of sampling_strategy.",
                UserWarning,
                stacklevel=3,
            )
        selected = self._selected(kept, matrix, codes)
        self.summary_["kept"] = {self._names[k]: len(rows) for k, rows in selected.items()}
        copied = np.concatenate(copies)
        self.sample_indices_ = np.concatenate([np.arange(len(codes)), copied])
        # Any row of a class shows how the class is written.
        first = {k: int(np.flatnonzero(codes == k)[0]) for k in selected}
        labels = [np.full(len(rows), first[k]) for k, rows in selected.items()]
        new = self._decoded([(k, kept[k], rows) for k, rows in selected.items()])
        return (
            self._layout.join(X, copied, new),
            take_rows(y, np.concatenate([self.sample_indices_, *labels]).astype(np.int64)),
        )

    def fit_weighted(
        self, X: Any, y: Any, *, times: float = 2.0, amount: float = 0.5
    ) -> tuple[Any, Any, NDArray[np.float64]]:
        """Resample with soft labels: ``X``, then new rows of every class, and weights to train with.

        New rows get soft labels from an ensemble fitted on the real ones (Bucilă, Caruana & Niculescu-Mizil 2006,
        "Model Compression"): one row for every likely class, weighted by the ensemble's sharpened probability of that
        class. (Constraints hold between drawn rows; one with two likely classes occurs twice.) This variant of
        ``purpose="utility"`` raises AUPRC most (docs/sampler.md), but :meth:`fit_resample` cannot return weights.
        ``purpose`` and ``sampling_strategy`` only affect :meth:`fit_resample`.

        Takes and raises what :meth:`fit` does.

        Parameters
        ----------
        times : float, default=2.0
            Records drawn of each class per real one; none of classes too small to learn.
        amount : float, default=0.5
            How far the weights bring every class to the largest one, in [0, 1], on a log scale.

        Returns
        -------
        X_weighted, y_weighted
            Of the types of ``X`` and ``y``; ``X`` first.
        sample_weight : ndarray of float64, shape (n_rows,)
            Of mean 1.

        Raises
        ------
        ParameterError
            If ``times`` is not positive, or ``amount`` outside [0, 1].
        """
        if not times > 0:
            raise ParameterError(f"times={times} draws nothing; choose a positive number.")
        if not 0 <= amount <= 1:
            raise ParameterError(f"amount={amount} is not a share; choose it in [0, 1].")
        matrix, codes = self._fit(X, y)
        teacher = fit_teacher(matrix, codes, **self._columns)
        taken = self._rules.taken()
        drawn = []
        for k, n_real in enumerate(self._spec.class_counts):
            n = round(times * n_real)
            if n and n_real >= MIN_SAMPLED_RECORDS:
                drawn.append((k, self._draw_noted(k, n, taken), np.arange(n)))
        new_X = np.concatenate([matrix[:0], *(kept.X for _, kept, _ in drawn)])
        drawn_for = np.concatenate([codes[:0], *(np.full(len(i), k) for k, _, i in drawn)])
        rows, classes, shares = soft_label_rows(teacher.predict_proba(new_X), drawn_for)
        self.summary_ |= {"purpose": "utility", "teacher": teacher.member_shares}
        self.sample_indices_ = np.arange(len(codes))
        # Any row of a class shows how the class is written.
        first = np.array([np.flatnonzero(codes == k)[0] for k in range(len(self.classes_))])
        weights = class_balanced_weights(
            np.concatenate([np.ones(len(codes)), shares]),
            np.concatenate([codes, classes]),
            amount=amount,
        )
        return (
            self._layout.join(X, np.empty(0, dtype=np.int64), self._decoded(drawn).take(rows)),
            take_rows(y, np.concatenate([self.sample_indices_, first[classes]])),
            weights,
        )

    def sample(
        self, counts: dict[Any, int], *, given: dict[str, Any] | None = None, random_state: int = 0
    ) -> tuple[Any, NDArray[Any]]:
        """Draw new rows of some classes, without the utility filter; ``counts`` are rows by class.

        ``given`` holds the value that every row has, by column; the other columns are drawn conditionally
        on it. Another ``random_state`` gives other rows. Returns X of the type in :meth:`fit`, and y.
        Raises EmptyClassError for a class that is unknown or has too few rows to learn, and ParameterError
        if a value does not fit its column, or too few draws keep the constraints.
        """
        check_is_fitted(self, "model_")
        fixed = Rules.of(self.encoder_, self.encoder_.schema.empty_table, conditions=given)
        rules = replace(self._rules, values=fixed.values, values_json=fixed.values_json)
        taken, parts, y = rules.taken(), [], []
        for name, n in counts.items():
            k = self._stratum(name)
            n_real = self._spec.class_counts[k]
            if n and n_real < MIN_SAMPLED_RECORDS:
                raise EmptyClassError(
                    f"class {name!r} has {n_real} rows, and a model needs {MIN_SAMPLED_RECORDS} to "
                    "learn it; ask for other classes.",
                    class_name=str(name),
                )
            if n:
                parts.append((k, self._draw(k, n, rules, random_state, taken), np.arange(n)))
                y.append(np.full(n, k))
        codes = np.concatenate([np.empty(0, dtype=np.int64), *y])
        return self._layout.from_arrow(self._decoded(parts, given or ())), self._by_stratum[codes]

    def _fit(self, X: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Fit everything; returns the matrix form and the class codes."""
        self._validate_params()
        if y is None:
            raise ValueError("GenerativeSampler requires y to be passed, but the target y is None.")
        y = y if kind_of(y) == "pandas" and y.ndim == 1 else np.asarray(y)
        check_classification_targets(y)
        y, _ = check_target_type(y, indicate_one_vs_all=True)
        X = self._validated(X, y)
        self.sampling_strategy_ = check_sampling_strategy(
            self.sampling_strategy, y, "over-sampling"
        )
        self.classes_, codes = np.unique(y, return_inverse=True)
        names = tuple(map(str, self.classes_.tolist()))
        self._layout = Layout.of(X)
        table, label = self._layout.with_classes(X, names, codes)
        overrides = TypeAdapter(list[ColumnOverride]).validate_python(list(self.columns or []))
        for override in overrides:
            if override.kind == "drop":
                raise ParameterError(
                    f"columns drops {override.name!r}, but rows are returned with all columns; leave "
                    "the column out of X, or set kind: opaque."
                )
        columns = describe_columns(table, label=label, overrides=overrides)
        self.encoder_ = TableEncoder.fit(table, columns=columns, label=label)
        # The encoder orders classes by its own rule, numpy by another.
        position = np.array([self.encoder_.strata.index(name) for name in names])
        self._by_stratum = self.classes_[np.argsort(position)]
        self._names: list[Any] = self._by_stratum.tolist()
        codes = position[codes].astype(np.int64)
        self._rules = Rules.of(self.encoder_, lambda: table, constraints=self.constraints or [])
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        matrix = self.encoder_.encode(table)
        self._spec = table_spec(self.encoder_, codes)
        self.encoder_ = self.encoder_.guarding(RareValues.of(matrix, self.encoder_.is_category))
        self.model_ = fit_model(
            TableData(matrix, codes),
            self._spec,
            self._params(),
            self._seed,
            budget=TypeAdapter(Budget).validate_python(self.budget or {}),
        )
        if self.max_near is not None:
            self._rules = replace(self._rules, near=self._near(matrix, codes))
        self.summary_: dict[str, Any] = {"purpose": self.purpose, "kind": self.kind}
        self.summary_ |= {"drawn": {}, "kept": {}, "copied": {}, "accepted": {}}
        return matrix, codes

    def _near(self, matrix: NDArray[np.float64], codes: NDArray[np.int64]) -> NearRows | None:
        """The limit on rows near to a row of ``X``; all rows were used for fitting."""
        n_rows = np.array(self._spec.class_counts)
        is_compared = n_rows >= MIN_SAMPLED_RECORDS
        share = self.max_near
        if share == "auto":
            is_compared &= n_rows < SMALL_CLASS
            share = AUTO_NEAR
        if not is_compared.any():
            return None
        near = NearRows.of(
            share,
            self.model_,
            self.encoder_,
            training=(matrix, codes),
            validation=(matrix[:0], codes[:0]),
            strata=np.flatnonzero(is_compared).tolist(),
        )
        return near.where_feasible(AUTO_ACCEPTED) if self.max_near == "auto" else near

    def _validated(self, X: Any, y: NDArray[Any]) -> Any:
        """``X`` with its columns counted and named; refuses what is no table."""
        kind = kind_of(X)
        if kind not in ("numpy", "list"):
            Layout.of(X)  # names the columns that cannot be told apart
        if kind == "pandas":
            validate_data(self, X, y, skip_check_array=True)
        elif kind in ("polars", "arrow"):
            names = X.column_names if kind == "arrow" else X.columns
            self.n_features_in_, self.feature_names_in_ = len(names), np.array(names, dtype=object)
        else:
            checked, _ = validate_data(self, X, y, dtype=None, ensure_all_finite=False)
            return X if kind == "list" else checked
        if len(X) != len(y):
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: X has {len(X)} rows "
                f"and y has {len(y)}; give one class per row."
            )
        return X

    def _params(self) -> ModelParams:
        """Parameters of the requested model: one of ours, or a plug-in."""
        options = dict(self.model_params or {})
        requested = {"kind": "plugin", "name": self.kind, "options": options}
        if self.kind == "auto" or self.kind in MODELS:
            requested = {"kind": self.kind, **options}
        params: ModelParams = TypeAdapter(ModelParams).validate_python(requested)
        resolve_model(params)  # refuses a model of images before anything is loaded for it
        return params

    @property
    def _columns(self) -> dict[str, Any]:
        """What classifiers of the matrix form take."""
        return {
            "n_levels": self.encoder_.n_levels,
            "n_classes": len(self.classes_),
            "seed": self._seed,
        }

    def _stratum(self, name: Any) -> int:
        if name not in self._names:
            raise EmptyClassError(
                f"there is no class {name!r}; the classes are {self.classes_.tolist()}.",
                class_name=str(name),
            )
        return self._names.index(name)

    def _draw(
        self, k: int, n: int, rules: Rules, seed: int, taken: Keys, *, least: int = 0
    ) -> Kept:
        name = self._spec.classes[k]
        return draw_kept(
            self.model_,
            self.encoder_,
            rules,
            stratum=name,
            start=0,
            n=int(n),
            least=int(least or n),
            seeds_of=partial(candidate_seeds, seed, name, conditions=rules.values_json),
            taken=taken,
        )

    def _draw_noted(self, k: int, n: int, taken: Keys, *, least: int = 0) -> Kept:
        """Draw by the rules of all rows, and note how many draws it took."""
        kept = self._draw(k, n, self._rules, self._seed, taken, least=least)
        self.summary_["drawn"][self._names[k]] = len(kept.X)
        self.summary_["accepted"][self._names[k]] = len(kept.X) / kept.n_draws
        return kept

    def _selected(
        self, kept: dict[int, Kept], matrix: NDArray[np.float64], codes: NDArray[np.int64]
    ) -> dict[int, NDArray[np.int64]]:
        """By class, the drawn records that are kept, best first."""
        if self.purpose == "faithful" or not kept:
            return {k: np.arange(len(drawn.X)) for k, drawn in kept.items()}
        classifier = utility_filter(matrix, codes, **self._columns)
        selected = {}
        for k, drawn in kept.items():
            score = utility_scores(classifier, drawn.X, np.full(len(drawn.X), k))
            wanted = self.sampling_strategy_[self._names[k]]
            selected[k] = np.argsort(-score, kind="stable")[:wanted]
        return selected

    def _decoded(
        self, parts: list[tuple[int, Kept, NDArray[np.int64]]], given: Collection[str] = ()
    ) -> pa.Table:
        names = [self._spec.classes[k] for k, _, rows in parts for _ in rows]
        empty = np.empty(0, dtype=np.int64)
        X = [np.empty((0, len(self.encoder_.names))), *(kept.X[rows] for _, kept, rows in parts)]
        ordinals = np.concatenate([empty, *(kept.ordinals[rows] for _, kept, rows in parts)])
        seeds = np.concatenate([empty, *(kept.seeds[rows] for _, kept, rows in parts)])
        return self.encoder_.decode(
            np.concatenate(X),
            strata=names,
            ordinals=ordinals,
            aug_ids=derived_ids("synthetic", names, seeds.tolist()).to_pylist(),
            given=given,
        ).drop_columns([self.encoder_.label])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.sampler_tags.sample_indices = True
        return tags

"""Check a generative model of one's own: what :class:`.base.GenerativeModel` promises, tried on made-up records."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import AugmentError
from prefect_augment.genmodels.base import (
    FitContext,
    GenerativeModel,
    ImageData,
    ImageSpec,
    TableData,
    TableSpec,
)

_CLASSES, _COUNTS = ("head", "middle", "tail"), (120, 60, 12)
_TABLE = TableSpec(("number", "level"), (False, True), (0, 3), _CLASSES, _COUNTS)
_IMAGES = ImageSpec(size=12, channels=1, classes=_CLASSES, class_counts=_COUNTS)
_CONDITIONS = np.array([2, 0, 0, 1, 2, 1] * 8, dtype=np.int64)
_OBJECTS = np.dtype(object)
_SEEDS = np.arange(len(_CONDITIONS), dtype=np.int64) * 7_919 - 3


def check_model(
    model: type,
    *,
    params: Any = None,
    modality: Literal["table", "image"] = "table",
    steps: int = 20,
) -> None:
    """Check that a class keeps the promises of a generative model.

    Trains it several times on 192 small records of three classes and samples from it.

    Parameters
    ----------
    model : type
        The class; see :class:`prefect_augment.genmodels.base.GenerativeModel`.
    params : optional
        What its ``build`` takes; a class with pydantic ``Params`` gets their defaults.
    modality : {"table", "image"}
        What it makes.
    steps : int
        Training steps of each fit.

    Raises
    ------
    AssertionError
        Names every promise that is broken, with what was expected and found.

    Examples
    --------
    >>> from prefect_augment.genmodels.trees.model import TableTrees
    >>> from prefect_augment.params import TreesModel
    >>> check_model(TableTrees, params=TreesModel())
    """
    if params is None:
        params = model.Params() if hasattr(model, "Params") else {}
    case = _Case(model, params, _TABLE if modality == "table" else _IMAGES, steps)
    broken = []
    for check in _CHECKS:
        try:
            check(case)
        except AssertionError as exc:
            broken.append(f"{check.__name__.lstrip('_').replace('_', ' ')}: {exc}")
        except Exception as exc:  # noqa: BLE001 - a model of somebody else's raises anything
            what = f"{type(exc).__name__}: {exc}"
            broken.append(f"{check.__name__.lstrip('_').replace('_', ' ')}: raised {what}")
    listed = "\n- ".join(broken)
    _expect(not broken, f"{model.__name__} breaks {len(broken)} promises:\n- {listed}")


def _expect(is_so: bool, message: str) -> None:
    """Assert, also under ``python -O``."""
    if not is_so:
        raise AssertionError(message)


@dataclass
class _Case:
    """A class with records to train it on."""

    model: Any
    params: Any
    spec: TableSpec | ImageSpec
    steps: int

    def records(self) -> TableData | ImageData:
        """Records whose number, or brightness, follows their class."""
        rng = np.random.default_rng(5)
        y = np.repeat(np.arange(len(_COUNTS)), _COUNTS).astype(np.int64)
        if isinstance(self.spec, ImageSpec):
            levels = np.array([50, 125, 200])[y][:, None, None, None]
            noisy = levels + rng.normal(0, 8, (len(y), *self.spec.shape))
            return ImageData(np.clip(noisy, 0, 255).astype(np.uint8), y)
        number = np.where(rng.random(len(y)) < 0.1, np.nan, rng.normal(10.0 * y))
        return TableData(np.column_stack([number, rng.integers(0, 2, len(y))]), y)

    @cached_property
    def trained(self) -> GenerativeModel:
        """A model that several checks look at."""
        return self.fitted()

    def fitted(self, heard: Callable[[int], None] = lambda step: None) -> GenerativeModel:
        model: GenerativeModel = self.model.build(self.params, self.spec)
        context = FitContext(
            seed=1, steps=self.steps, threads=1, report=lambda step, scalars: heard(step)
        )
        model.fit(self.records(), context)
        return model

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return self.spec.shape if isinstance(self.spec, ImageSpec) else (self.spec.n_columns,)


def _draw(model: GenerativeModel, n: int = len(_CONDITIONS), shift: int = 0) -> NDArray[Any]:
    return model.sample(_CONDITIONS[:n], seeds=_SEEDS[:n] + shift)


def _one_record_per_condition(case: _Case) -> None:
    X = _draw(case.trained)
    expected = (len(_CONDITIONS), *case.shape)
    _expect(X.shape == expected, f"expected the shape {expected}, found {X.shape}")
    dtype = np.float64 if isinstance(case.spec, TableSpec) else np.uint8
    _expect(X.dtype == dtype, f"expected {dtype.__name__}, found {X.dtype}")
    nothing = case.trained.sample(np.empty(0, np.int64), seeds=np.empty(0, np.int64))
    _expect(nothing.shape == (0, *case.shape), f"no condition gave the shape {nothing.shape}")


def _values_stay_in_their_domain(case: _Case) -> None:
    if isinstance(case.spec, TableSpec):
        levels = set(np.unique(_draw(case.trained)[:, 1]))
        _expect(levels <= {0.0, 1.0}, f"training has the levels 0 and 1, drawn were {levels}")


def _the_same_seed_gives_the_same_record(case: _Case) -> None:
    model = case.trained
    once, again, other = _draw(model), _draw(model), _draw(model, shift=10_000)
    _expect(once.tobytes() == again.tobytes(), "drawn twice, records differ")
    _expect(once.tobytes() != other.tobytes(), "other seeds gave the same records")


def _a_record_depends_on_its_class_and_seed_alone(case: _Case) -> None:
    model = case.trained
    fewer = _draw(model, 7)
    _expect(fewer.tobytes() == _draw(model)[:7].tobytes(), "the first seven changed with the rest")


def _training_twice_gives_the_same_model(case: _Case) -> None:
    (config, arrays), (again_config, again) = case.trained.state(), case.fitted().state()
    _expect(config == again_config, "the configs of two fits with one seed differ")
    differ = [n for n in arrays if again.get(n, np.empty(0)).tobytes() != arrays[n].tobytes()]
    _expect(not differ, f"arrays of two fits with one seed differ: {', '.join(differ)}")


def _the_state_is_json_and_arrays(case: _Case) -> None:
    model = case.trained
    config, arrays = model.state()
    odd = [n for n, a in arrays.items() if getattr(a, "dtype", _OBJECTS) == _OBJECTS]
    _expect(not odd, f"expected numpy arrays without objects, not {', '.join(odd)}")
    loaded = case.model.from_state(json.loads(json.dumps(config)), arrays, device="cpu")
    _expect(_draw(loaded).tobytes() == _draw(model).tobytes(), "a loaded model draws other records")
    _expect(loaded.n_steps == model.n_steps, "a loaded model has another n_steps")


def _progress_is_reported(case: _Case) -> None:
    heard: list[int] = []
    model = case.fitted(heard.append)
    _expect(bool(heard), "ctx.report was never called, so the progress bar stands still")
    _expect(heard == sorted(heard), f"steps went back: {heard}")
    _expect(model.n_steps > 0, f"n_steps is {model.n_steps} after training")


def _unknown_classes_are_refused(case: _Case) -> None:
    model = case.trained
    try:
        model.sample(np.array([len(_CLASSES)]), seeds=np.array([0]))
    except AugmentError:
        return
    raise AssertionError(
        "class 3 of 3 was drawn; raise EmptyClassError (genmodels.checks.check_request)"
    )


_CHECKS = (
    _one_record_per_condition,
    _values_stay_in_their_domain,
    _the_same_seed_gives_the_same_record,
    _a_record_depends_on_its_class_and_seed_alone,
    _training_twice_gives_the_same_model,
    _the_state_is_json_and_arrays,
    _progress_is_reported,
    _unknown_classes_are_refused,
)

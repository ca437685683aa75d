"""The measure that decides a comparison."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefect_augment.params.base import Params

DEFAULT_METRIC = "balanced_accuracy"

# Functions given in Python, by module:function: this process may call them without importing anything.
_given: dict[str, Callable[..., Any]] = {}


def _class(name: Any) -> Any:
    """A class as text, also where YAML reads a number."""
    if isinstance(name, bool):
        raise ValueError(
            f"{name} is a truth value to YAML; put quotes around the class, as in 'yes'."
        )
    return str(name) if isinstance(name, int) else name


ClassName = Annotated[str, BeforeValidator(_class)]


class Mistake(Params):
    """What it costs to take a record of one class for another."""

    true: ClassName
    """The class of the record."""
    predicted: ClassName
    """The class that it is taken for."""
    cost: float
    """In any unit; below 0 for a profit."""


class Metric(Params):
    """The measure that decides."""

    name: str = Field(default=DEFAULT_METRIC, min_length=1)
    """balanced_accuracy, macro_f1, f_beta, average_precision, roc_auc, recall_at_precision, precision_at_recall,
    log_loss, brier or cost; a scorer of scikit-learn's, such as matthews_corrcoef; or a function of your own, by its
    name in the entry-point group prefect_augment.metrics."""
    label: ClassName = ""
    """The class that f_beta, recall_at_precision and precision_at_recall are about: the rarest if empty. Given with
    average_precision or roc_auc, that class alone."""
    beta: float = Field(default=1.0, gt=0.0)
    """f_beta: recall counts this many times as much as precision."""
    precision: float = Field(default=0.9, gt=0.0, le=1.0)
    """recall_at_precision: the precision that has to be reached."""
    recall: float = Field(default=0.9, gt=0.0, le=1.0)
    """precision_at_recall: the recall that has to be reached."""
    matrix: list[Mistake] = Field(default_factory=list)
    """cost: what each mistake costs; a pair that is not listed costs nothing."""
    function: str = ""
    """Instead of a name, a function of your own as module:function, where the worker's environment allows it. It gets
    true class names, probabilities and the classes, and returns a number."""
    lower_is_better: bool = False
    """A function of your own: its low values are the good ones."""
    version: str = ""
    """A function of your own: give another text when the function has changed, so that no earlier score is reused."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, metric: Any) -> Any:
        """Also take a name or a function, as a metric is written in Python and YAML."""
        if isinstance(metric, str):
            return {"name": metric}
        return _of_function(metric) if callable(metric) else metric

    @field_validator("matrix", mode="before")
    @classmethod
    def _from_mapping(cls, matrix: Any) -> Any:
        """Also take ``{true: {predicted: cost}}``."""
        if not isinstance(matrix, Mapping):
            return matrix
        return [
            {"true": true, "predicted": predicted, "cost": cost}
            for true, row in matrix.items()
            for predicted, cost in dict(row).items()
        ]

    @model_validator(mode="after")
    def _goes_together(self) -> "Metric":
        pairs = [(m.true, m.predicted) for m in self.matrix]
        if len(pairs) != len(set(pairs)):
            raise ValueError("matrix names the same mistake twice; keep one entry per pair.")
        if self.function and self.name != DEFAULT_METRIC:
            raise ValueError("name and function are both given; leave one of them out.")
        if (self.name == "cost") != bool(pairs):
            raise ValueError(
                "the metric 'cost' and its matrix belong together: "
                "{name: cost, matrix: {yes: {no: 5}, no: {yes: 1}}}."
            )
        return self


def function_given(path: str) -> Callable[..., Any] | None:
    """The function that was given in Python under ``module:function`` in this process; None if there is none."""
    return _given.get(path)


def _of_function(function: Callable[..., Any]) -> dict[str, str]:
    """The metric of a function given in Python, whose source is its version."""
    name = getattr(function, "__qualname__", "")
    if not name or "<" in name or not getattr(function, "__module__", None):
        raise ValueError(
            f"{function!r} has no name that it can be found by; give a function from the top level of a module."
        )
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # built in, or typed at a prompt
        source = repr(getattr(function, "__code__", name))
    path = f"{function.__module__}:{name}"
    _given[path] = function
    return {"function": path, "version": hashlib.sha256(source.encode()).hexdigest()[:12]}

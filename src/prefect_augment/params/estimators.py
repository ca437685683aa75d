"""The classifiers that compare strategies: by name, by a factory of your own, or as an object."""

import hashlib
import inspect
import sys
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from prefect_augment.params.base import Params
from prefect_augment.params.models import PluginOptions

Estimator = Literal["boosting", "logistic", "random_forest", "lightgbm", "xgboost", "catboost"]


class OwnEstimator(Params):
    """A classifier of your own: for tables from scikit-learn's interface, for images a torch module."""

    model_config = ConfigDict(title="your own")

    factory: str = ""
    """The function that makes it: its name in the entry-point group prefect_augment.estimators, or module:function.
    Tables: called with the options, it returns a classifier as scikit-learn has them. Images: called with n_classes,
    size, channels and the options, it returns a torch module."""
    options: PluginOptions = Field(default_factory=list)
    """Passed to the factory by name."""
    name: str = ""
    """As results show it; empty: the name of the function or class."""
    digest: SkipJsonSchema[str] = ""
    """What the classifier is: its class, parameters and version. The run fills it in."""
    _given: Any = PrivateAttr(default=None)  # an object from Python; it is in no JSON

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.factory and not self.digest:
            raise ValueError(
                "factory is empty; name the function that makes your classifier (module:function), or give the "
                "classifier itself in Python."
            )
        return self

    @classmethod
    def of(cls, given: Any, *, name: str = "") -> "OwnEstimator":
        """Return the params of an object: an unfitted scikit-learn classifier, or a factory of a torch module.

        The object stays with the params inside this process and in pickles; JSON has its digest alone.
        Raises ValueError for anything else, and for a classifier without ``predict_proba``.
        """
        if not hasattr(given, "fit") and not callable(given):
            raise ValueError(
                f"estimators holds {type(given).__name__} {given!r}; expected a name, a scikit-learn classifier, a "
                "factory of a torch module, or {factory, options}."
            )
        if hasattr(given, "fit") and not inspect.isclass(given) and (why := unusable(given)):
            raise ValueError(why)
        own = cls(name=name or name_of(given), digest=estimator_digest(given))
        own._given = given
        return own

    @property
    def given(self) -> Any:
        """The object that Python gave; None for a factory, and after a trip through JSON."""
        return self._given

    @property
    def title(self) -> str:
        """The name that results show."""
        return self.name or self.factory.rpartition(":")[2]

    @property
    def option_values(self) -> dict[str, Any]:
        """The options by name."""
        return {option.name: option.parsed for option in self.options}


def unusable(estimator: Any) -> str:
    """Return why a classifier cannot be compared; empty where it can."""
    name = type(estimator).__name__
    if not all(hasattr(estimator, method) for method in ("fit", "get_params", "set_params")):
        return (
            f"{name} is no scikit-learn classifier: it lacks fit, get_params or set_params; derive it from "
            "sklearn.base.ClassifierMixin and BaseEstimator."
        )
    if not hasattr(estimator, "predict_proba"):
        return (
            f"{name} has no predict_proba, and strategies are compared by probabilities; choose a classifier that "
            "gives them, such as CalibratedClassifierCV around it."
        )
    return ""


def name_of(given: Any) -> str:
    """Return the name of a function or class; of a pipeline, that of its last step."""
    if inspect.isroutine(given) or inspect.isclass(given):
        return given.__name__
    return type(_last_step(given)).__name__


def estimator_digest(given: Any) -> str:
    """Return the sha256 of what a classifier or factory is, 64 hexadecimal digits.

    It covers classes, parameters and versions of packages; of what no package with a version offers, the source
    code. Raises ValueError where a parameter cannot be hashed, such as a lambda.
    """
    import joblib
    from sklearn.base import clone

    is_instance = not (inspect.isroutine(given) or inspect.isclass(given))
    parts = [given]
    if is_instance and hasattr(given, "get_params"):
        given = clone(given)  # what it has learnt is not what it is
        parts += given.get_params(deep=True).values()
    codes = sorted({_code(part) for part in parts if part is not None})
    try:
        content = joblib.hash(given, hash_name="sha1")
    except Exception as exc:
        raise ValueError(
            f"{name_of(given)} cannot be hashed, so its results could not be told from another's: {exc}; use named "
            "functions instead of lambdas, or a factory."
        ) from exc
    return hashlib.sha256("\n".join([content, *codes]).encode()).hexdigest()


def package_of(given: Any) -> tuple[str, str]:
    """Return the package of a classifier or factory, of a pipeline's last step, and its version, empty if unknown."""
    of = given if inspect.isroutine(given) or inspect.isclass(given) else type(_last_step(given))
    package = str(of.__module__).partition(".")[0]
    return package, str(getattr(sys.modules.get(package), "__version__", ""))


def _last_step(given: Any) -> Any:
    steps = getattr(given, "steps", None)
    return _last_step(steps[-1][1]) if isinstance(steps, list) and steps else given


def _code(part: Any) -> str:
    """Return class or function with its version, or with its source code; empty for plain values."""
    is_code = inspect.isroutine(part) or inspect.isclass(part)
    if not is_code and not hasattr(part, "get_params"):
        return ""
    of = part if is_code else type(part)
    package = str(getattr(of, "__module__", "")).partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    if not version and inspect.isfunction(of) | inspect.isclass(of):
        try:
            version = inspect.getsource(of)
        except (OSError, TypeError):  # typed into a shell
            version = ""
    return f"{package} {getattr(of, '__qualname__', '')} {version}"

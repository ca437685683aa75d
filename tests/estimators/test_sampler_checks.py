"""``GenerativeSampler`` under imbalanced-learn's and scikit-learn's own checks of estimators.

None of them is excepted: what they expect of sparse matrices is that they are refused, and that of
pandas' sparse columns that they come back sparse.
"""

from collections.abc import Callable
from typing import Any

import pytest
from imblearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_param_validation,
    parametrize_with_checks as imblearn_checks,
)
from sklearn.utils.estimator_checks import parametrize_with_checks as sklearn_checks

from prefect_augment.estimators.sampler import GenerativeSampler

# Soft labels by a small ensemble: the checks are about the interface, and bring some fifty data sets.
pytestmark = pytest.mark.usefixtures("quick_runs")

SAMPLERS = [
    GenerativeSampler(random_state=0),
    GenerativeSampler(purpose="faithful", random_state=0),
]


def listed(checks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Both libraries give pytest a generator, which pytest 9 warns of."""
    names, values = checks.args
    return pytest.mark.parametrize(names, list(values), **checks.kwargs)


@pytest.mark.slow
@listed(imblearn_checks(SAMPLERS))
def test_imbalanced_learn_takes_it_for_a_sampler(
    estimator: Any, check: Callable[[Any], None]
) -> None:
    check(estimator)


@listed(sklearn_checks(SAMPLERS[1:]))
def test_scikit_learn_takes_it_for_an_estimator(
    estimator: Any, check: Callable[[Any], None]
) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "check", [check_param_validation, check_dataframe_column_names_consistency]
)
def test_parameters_and_names_are_looked_at(check: Callable[[str, Any], None]) -> None:
    check("GenerativeSampler", GenerativeSampler(random_state=0))

"""Kernels worked out by hand."""

import numpy as np
import pytest

from prefect_augment.evaluation.privacy.attack_suite import bandwidths, density_ratio, origin_shares


def test_each_synthetic_record_has_one_origin_in_all() -> None:
    rng = np.random.default_rng(0)
    to_made = rng.random((30, 50)).astype(np.float32)
    to_made[3] = 0.0  # nearest to all
    shares = origin_shares(to_made, (0.1, 0.2))
    assert shares.sum() == pytest.approx(50, rel=1e-5)
    assert shares.argmax() == 3


def test_density_ratio_is_that_of_two_gaussian_kernels() -> None:
    to_made = np.array([[1.0, 4.0], [0.0, 9.0]], dtype=np.float32)
    to_real = np.array([[np.inf, 2.0], [2.0, np.inf]], dtype=np.float32)
    found = density_ratio(to_made, to_real, (1.0,), 2)
    made = np.log(np.exp(-to_made / 2).sum(axis=1))
    assert found == pytest.approx(made + 1.0, abs=1e-5)
    assert bandwidths(to_real, 2) == pytest.approx((1.0, 1.5, 2.0))

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from prefect_augment.nn import threads
from prefect_augment.nn.threads import single_threaded


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads():
    """Whatever the environment says, so that a limit can be seen."""
    with threadpool_limits(2, user_api="blas"):
        yield


def test_every_worker_has_one_thread_whoever_limited_blas_first():
    """threadpoolctl lets only the thread set OpenBLAS that did so first: here, that of the tests."""

    def work(_):
        with single_threaded():
            return blas_threads()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(20))) == [{1}] * 20
    assert blas_threads() == {2}


def test_overlapping_blocks_hold_the_limit_until_the_last_one_leaves():
    first, second = ExitStack(), ExitStack()
    first.enter_context(single_threaded())
    second.enter_context(single_threaded())
    first.close()
    assert blas_threads() == {1}
    second.close()
    assert blas_threads() == {2}


@pytest.mark.parametrize("api", ["openmp", "blas", None])
def test_a_limit_of_others_that_ends_beside_blocks_does_not_lift_theirs_for_good(api):
    """It restores every library, as scikit-learn's searches do; two workers are hardly ever both outside of a block."""
    other, first, second = ExitStack(), ExitStack(), ExitStack()
    other.enter_context(threadpool_limits(1 if api else 2, user_api=api))
    first.enter_context(single_threaded())
    other.close()
    with single_threaded():
        assert blas_threads() == {1}
    second.enter_context(single_threaded())
    first.close()
    assert blas_threads() == {1}
    second.close()
    assert blas_threads() == ({1} if api == "blas" else {2})


def test_the_limit_reaches_libraries_that_are_loaded_after_the_first_block(monkeypatch):
    """A search takes milliseconds, so it is only made again when modules have come."""
    searched = []

    class Libraries(threads.ThreadpoolController):
        def __init__(self):
            searched.append(True)
            super().__init__()

    monkeypatch.setattr(threads, "ThreadpoolController", Libraries)
    monkeypatch.setattr(threads, "_libraries", None)
    for _ in range(3):
        with single_threaded():
            pass
    assert len(searched) == 1
    monkeypatch.setitem(sys.modules, "a_module_that_came_later", sys)
    with single_threaded():
        pass
    assert len(searched) == 2

"""How often a store is asked again, and how long is waited in between: one policy for every driver.

The drivers' own retries are turned off where they can be (``storage.py``), so that attempts do not multiply.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, wait_random_exponential

from prefect_augment.errors import ParameterError

__all__ = ["ONCE", "RetryPolicy", "call"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with exponential back-off and full jitter.

    Parameters
    ----------
    attempts : int
        In all, the first one included.
    backoff_seconds : float
        The longest wait before the second attempt; it doubles with each. What is waited is uniform
        between 0 and that, so that many runs which a store sends away do not come back together.
    max_seconds : float
        No wait is longer.

    References
    ----------
    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015 ("full jitter").
    """

    attempts: int = 8
    backoff_seconds: float = 0.25
    max_seconds: float = 8.0

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """Return the policy, with what the environment says instead of its defaults.

        ``PREFECT_AUGMENT_STORAGE_ATTEMPTS`` and ``PREFECT_AUGMENT_STORAGE_BACKOFF_SECONDS``.

        Raises
        ------
        ParameterError
            If one of them is not a number that makes sense.
        """
        attempts = _number("PREFECT_AUGMENT_STORAGE_ATTEMPTS", cls.attempts, least=1)
        backoff = _number("PREFECT_AUGMENT_STORAGE_BACKOFF_SECONDS", cls.backoff_seconds, least=0)
        return cls(attempts=int(attempts), backoff_seconds=backoff)


ONCE = RetryPolicy(attempts=1)


def call(
    function: Callable[[], T],
    *,
    policy: RetryPolicy,
    attempts: Callable[[Exception], int],
    what: str,
) -> T:
    """Return what ``function`` returns, asking again after passing faults; raise its last exception.

    Parameters
    ----------
    function : callable
        Without arguments; it must bear being called again after it failed.
    policy : RetryPolicy
        How long to wait.
    attempts : callable
        How many attempts an exception is worth: 1 where it is final.
    what : str
        For the log, without secrets.
    """
    states: list[RetryCallState] = []

    def is_worth_it(state: RetryCallState) -> bool:
        states.append(state)
        exc = state.outcome.exception() if state.outcome else None
        if not isinstance(exc, Exception):
            return False
        return state.attempt_number < min(attempts(exc), policy.attempts)

    def log(state: RetryCallState) -> None:
        exc = state.outcome.exception() if state.outcome else None
        logger.info(
            "Cannot %s (%s, attempt %d); trying again in %.1f s.",
            what,
            type(exc).__name__,
            state.attempt_number,
            state.upcoming_sleep,
        )

    wait = wait_random_exponential(multiplier=policy.backoff_seconds, max=policy.max_seconds)
    retrying = Retrying(retry=is_worth_it, wait=wait, before_sleep=log, reraise=True)
    try:
        return retrying(function)
    finally:
        # Otherwise actions and the last exception hold one another, and with them all that the callers
        # have in memory, until the garbage collector comes.
        retrying.iter_state.reset()
        while states:
            states.pop().outcome = None


def _number(name: str, default: float, *, least: float) -> float:
    given = os.environ.get(name, "").strip()
    if not given:
        return default
    try:
        number = float(given)
    except ValueError:
        number = float("nan")
    if not least <= number < 1e6:
        raise ParameterError(f"{name} is {given!r}; give a number of at least {least:g}.")
    return number

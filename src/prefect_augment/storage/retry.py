"""How often a request to a store is repeated and how long it waits: one policy for every driver.

The drivers' own retries are off where possible (:mod:`.drivers`), so attempts do not multiply.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, wait_random_exponential

from prefect_augment.errors import ParameterError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with exponential back-off and full jitter.

    The wait before the second attempt is uniform in [0, ``backoff_seconds``]; the bound doubles with each
    attempt, up to ``max_seconds``. The jitter spreads out runs that a store rejects together.

    References
    ----------
    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015 ("full jitter").
    """

    attempts: int = 8
    backoff_seconds: float = 0.25
    max_seconds: float = 8.0

    @classmethod
    def from_environment(cls) -> "RetryPolicy":
        """Return the policy with ``PREFECT_AUGMENT_STORAGE_ATTEMPTS`` and ``…_BACKOFF_SECONDS`` applied.

        Raises ParameterError for a value that is no valid number.
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
    """Return what ``function`` returns, retrying transient faults; raise its last exception.

    ``attempts`` says how many attempts an exception is worth, 1 if it is final; ``what`` is for the log.
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
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number < 1e6:
        raise ParameterError(f"{name} is {text!r}; give a number of at least {least:g}.")
    return number

"""What one of many looks at a hold-out may spend of the chance of a false ``proven``.

Versions of a dataset share a hold-out, and each compares new strategies on it. The chance of *any*
false ``proven`` over all of them (the familywise error rate) stays at 5 %, whatever the number of
looks and whatever their strategies have in common: the chances that single looks spend sum to at
most that (the union bound; alpha spending).
"""

import math

from scipy.special import zeta

from prefect_augment.errors import ParameterError

#: Chance of any false ``proven`` over all looks at a hold-out.
FAMILYWISE_ERROR = 0.05
#: The first look spends as much as a single 95 % interval does, so a dataset of one version pays nothing.
FIRST = 0.025
# Of the rest, what looks get for being made, and what they get for records that arrived since.
_REPEATED, _ARRIVED = 0.015, 0.010
# Tian & Ramdas 2021 take this power for their spending sequences. Slower ones have more after hundreds
# of looks, faster ones at the second; at the twentieth this one has most of 1.2, 1.6 and 2.
_POWER = 1.6


def spent_alpha(
    number: int, *, n_first: int, n_before: int, n_now: int, returned: float = 0.0
) -> float:
    """Chance of a false ``proven`` that a look may spend: one side of its deciding interval.

    A look at the same records again gets a share of 1.5 % that falls with its number. Records that
    arrived since the look before bring a part of another 1 % with them, by the size of all that the
    hold-out has held (alpha spending by information, not by time). The look after one that was
    ``proven`` also gets what that one spent (the fallback procedure), and never more than the first.

    Parameters
    ----------
    number : int
        1 for the first look at the hold-out.
    n_first, n_before, n_now : int
        Records or groups that the hold-out had held at the first look, at the look before, and holds
        or has held now; not falling.
    returned : float
        What the look before spent, if it ended with ``proven``; else 0.

    Returns
    -------
    float
        In (0, 0.025]. Over any number of looks without ``proven`` the values sum to less than 0.05.

    Raises
    ------
    ParameterError
        If ``number`` is below 1, or the counts fall.

    References
    ----------
    Lan & DeMets 1983, "Discrete sequential boundaries for clinical trials" (spending by information).
    Wiens & Dmitrienko 2005, "The fallback procedure for evaluating a single family of hypotheses".
    Tian & Ramdas 2021, "Online control of the familywise error rate", section 3 (alpha spending and
    online fallback; both hold under any dependence).

    Examples
    --------
    >>> spent_alpha(1, n_first=1000, n_before=0, n_now=1000)
    0.025
    >>> round(spent_alpha(2, n_first=1000, n_before=1000, n_now=1000), 5)
    0.00385
    >>> round(spent_alpha(2, n_first=1000, n_before=1000, n_now=2000), 5)
    0.00678
    """
    if number < 1 or not 0 <= n_before <= n_now:
        raise ParameterError(
            f"look {number} at a hold-out that had {n_before} records and has {n_now}: looks count from 1, and "
            "records that left still count."
        )
    if number == 1:
        return FIRST
    first, before, now = (max(1, n) for n in (min(n_first, n_before), n_before, n_now))
    repeated = _REPEATED * number**-_POWER / (float(zeta(_POWER)) - 1)
    arrived = _ARRIVED * (math.sqrt(first / before) - math.sqrt(first / now))
    return min(FIRST, repeated + arrived + returned)

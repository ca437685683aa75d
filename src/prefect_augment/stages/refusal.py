"""When a run is refused after its report: nothing helps, or records give away what they were made from."""

from __future__ import annotations

from prefect_augment.datatypes import Verdict
from prefect_augment.facts_privacy import Privacy
from prefect_augment.params import Gate

__all__ = ["LEAKS", "why_refused"]

LEAKS = ("leak", "gap")


def why_refused(
    gate: Gate, verdict: Verdict | None, privacy: Privacy | None, *, goes_out: bool
) -> str:
    """Return why the gate lets nothing pass; empty where it does.

    Parameters
    ----------
    gate : Gate
        ``on_no_gain`` and ``on_leak``.
    verdict : Verdict, optional
    privacy : Privacy, optional
    goes_out : bool
        Whether the synthetic records are to be published, or are what was asked about.
    """
    if gate.on_no_gain == "fail" and verdict is not None and verdict.decision != "accept":
        return f"the verdict is {verdict.decision} and gate.on_no_gain is 'fail'. " + " ".join(
            verdict.reasons
        )
    if gate.on_leak == "fail" and goes_out and privacy is not None and privacy.finding in LEAKS:
        return f"the synthetic records leak and gate.on_leak is 'fail'. {privacy.sentence}"
    return ""

"""What a run found beside its verdict: each field is a key of ``report.json`` and a section of the page.

A further measurement is a frozen fact in ``facts_<name>.py``, a field here, a function
``evaluation/section_<name>.py`` that writes its part of the page, and its line in
:data:`.report_sections.SECTIONS`.
"""

from __future__ import annotations

from prefect_augment.datatypes import Fact
from prefect_augment.facts_drift import Contents, Drift
from prefect_augment.facts_holdout import CalibrationFacts, RobustnessFacts, SliceFacts
from prefect_augment.facts_policy import PolicyCheck
from prefect_augment.facts_privacy import Privacy
from prefect_augment.facts_search import SearchFacts
from prefect_augment.facts_training import Training

__all__ = ["Findings"]


class Findings(Fact):
    """Measurements that a report shows where they were made; None where they were not."""

    contents: Contents | None = None  # for the next version; no section
    drift: Drift | None = None
    search: SearchFacts | None = None
    training: Training | None = None
    policy: PolicyCheck | None = None
    privacy: Privacy | None = None
    robustness: RobustnessFacts | None = None
    slices: SliceFacts | None = None
    calibration: CalibrationFacts | None = None

"""What a report is made of. Whatever is left out is reported as not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prefect_augment.datatypes import (
    ArmScore,
    BalancePlan,
    ColumnFact,
    GateReport,
    Modality,
    Origin,
    Recipe,
    Verdict,
)
from prefect_augment.evaluation.shapes import ColumnShape
from prefect_augment.facts_search import SearchFacts

__all__ = ["Neighbour", "ReportData", "sheet_files"]


@dataclass(frozen=True)
class Neighbour:
    """A synthetic record beside the real training record that is nearest to it.

    ``synthetic`` and ``real`` map columns to text; ``distance`` is in the gate's feature space.
    """

    label: str
    synthetic: Mapping[str, str]
    real: Mapping[str, str]
    distance: float


@dataclass(frozen=True)
class ReportData:
    """Everything a report can show; whatever is left out is reported as not run.

    Parameters
    ----------
    title : str
        The dataset's name.
    label : str
        The label column.
    status : {"published", "proposed", "refused", "evaluated"}
        What became of the run; "evaluated" publishes nothing by intent, "proposed" not before
        somebody approves.
    approval : str
        Who approved it, in a sentence; empty where nobody was asked.
    plan : BalancePlan, optional
        None where only existing data was judged.
    notes : tuple of str
        What ingest said about the source.
    columns : tuple of ColumnFact
        Without the label.
    part_counts : mapping of part to class to int
        Real records in fit, val and holdout.
    arm_scores : tuple of ArmScore
        Scores on val, one per arm and seed.
    search : SearchFacts, optional
        What was tried on val, rung by rung.
    verdict, recipe, gate : optional
        The last comparison, the winner, what the gate kept.
    counts_before, counts_after : mapping of class to origin to int
        Training records (fit and val) before, and published.
    weighted_counts : mapping of class to float
        Sum of ``aug_weight`` per class over the published training records.
    not_judged : mapping of class to str
        Why a class is not judged; the verdict's own reasons are added.
    quarantine : mapping of reason to int
    rare_classes : tuple of str
        Classes that ``column_shapes`` is made of.
    column_shapes : mapping of column to ColumnShape
    neighbours : tuple of Neighbour
        Shown only where ``pictures`` is "real".
    modality : {"table", "image"}
    sheets : mapping of class to PNG bytes
        Picture sheets of :func:`sheets.sheet`, for images; in the page's order. They hold what
        ``pictures`` allows: whoever draws them leaves real images out where it says so.
    pictures : {"real", "synthetic", "none"}
        What may be seen of records: "synthetic" leaves real values out of every picture, table
        and file; "none" leaves out both.
    seed : int, optional
    model_kind, model_digest : str
        Empty where no model was trained.
    seconds : float, optional
    method_notes : tuple of str
        Sentences to add to the method section.
    digests : mapping of str to str
        Further digests for the lineage section, by what they are of.
    software : mapping of str to str
        Versions by package.
    """

    title: str
    label: str
    status: Literal["published", "proposed", "refused", "evaluated"] = "published"
    approval: str = ""
    plan: BalancePlan | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[ColumnFact, ...] = ()
    part_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    arm_scores: tuple[ArmScore, ...] = ()
    search: SearchFacts | None = None
    verdict: Verdict | None = None
    recipe: Recipe | None = None
    gate: GateReport | None = None
    counts_before: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    counts_after: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    weighted_counts: Mapping[str, float] = field(default_factory=dict)
    not_judged: Mapping[str, str] = field(default_factory=dict)
    quarantine: Mapping[str, int] = field(default_factory=dict)
    rare_classes: tuple[str, ...] = ()
    column_shapes: Mapping[str, ColumnShape] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()
    modality: Modality = "table"
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Literal["real", "synthetic", "none"] = "real"
    seed: int | None = None
    model_kind: str = ""
    model_digest: str = ""
    seconds: float | None = None
    method_notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)


def sheet_files(data: ReportData) -> dict[str, str]:
    """File name of each class's picture sheet: numbers, since a class may be called anything."""
    if data.pictures == "none":
        return {}
    return {name: f"sheet_{i}.png" for i, name in enumerate(data.sheets, start=1)}

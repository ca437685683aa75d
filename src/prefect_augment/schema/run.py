"""What a person decided, what was published, and the result of a run."""

from html import escape
from typing import Literal

from pydantic import Field

from prefect_augment.schema.base import BalancePlan, ModelRef, Result
from prefect_augment.schema.comparison import Recipe, StrategyScore, Verdict


class ApprovalDecision(Result):
    """A person's final decision on a proposal."""

    decision: Literal["approve", "reject"]
    by: str = ""  # who, if known
    comment: str = ""
    amounts: dict[str, int] = Field(default_factory=dict)  # stratum -> records, where lowered
    decided_at: str  # UTC, ISO 8601
    run: str = ""  # the suspended flow run; empty if a command or another flow decided
    n_corrected: int = 0  # labels that the next run reads as corrected

    @property
    def sentence(self) -> str:
        """Who decided what and why, for the log, the card and the report."""
        who = f" by {self.by}" if self.by else ""
        word = "Approved" if self.decision == "approve" else "Rejected"
        text = f"{word}{who} on {self.decided_at[:10]}."
        if self.amounts:
            lowered = ", ".join(f"{name} to {n:,}" for name, n in sorted(self.amounts.items()))
            text += f" Lowered: {lowered}."
        if self.n_corrected:
            labels = "1 label is" if self.n_corrected == 1 else f"{self.n_corrected:,} labels are"
            text += f" {labels} corrected from the next run on; run again to balance with them."
        # Quoted, because more sentences may follow.
        return f"{text} Comment: “{self.comment}”." if self.comment else text


class Correction(Result):
    """A label that a person corrected; it holds for all records with these values and this label."""

    aug_id: str  # in the version that the person looked at
    key: str  # content key, which does not depend on the label
    old: str
    label: str


class DecisionRecord(ApprovalDecision):
    """A decision as it is kept; its corrections stay there, as manifests, reports and Prefect may travel."""

    corrections: tuple[Correction, ...] = ()

    @property
    def decided(self) -> ApprovalDecision:
        """The decision alone."""
        return ApprovalDecision(**self.model_dump(exclude={"corrections"}))


class CorrectedLabels(Result):
    """The records of a version whose labels a person corrected in one decision."""

    by: str
    comment: str
    decided_at: str  # UTC, ISO 8601
    n_records: int
    # Both empty where no real record is published.
    digest: str  # of all corrections that the version was read with
    source_labels: dict[str, str]  # aug_id -> label in the source

    @property
    def sentence(self) -> str:
        """How many, by whom and when, for notes."""
        labels = "1 label" if self.n_records == 1 else f"{self.n_records:,} labels"
        who = f" by {self.by}" if self.by else ""
        return f"{labels} corrected, as approved{who} on {self.decided_at[:10]}"


class Commit(Result):
    """A published version."""

    root: str
    version: int
    manifest: str  # path relative to root
    content_digest: str
    created: bool  # False: the same inputs had been published before


class RunResult(Result):
    """Outcome of a run, as ``--json`` prints it."""

    status: Literal[
        "published", "unchanged", "evaluated", "planned", "awaiting_approval", "rejected"
    ]
    version: int | None
    manifest: str
    counts: dict[str, dict[str, dict[str, int]]]  # split -> class -> origin -> records
    quarantined: int
    plan: BalancePlan
    strategies: tuple[StrategyScore, ...]
    recipe: Recipe | None
    verdict: Verdict | None
    report: str
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    proposal: str = ""  # id, where one was made
    approval: ApprovalDecision | None = None
    # Of another tool's records: given, quarantined, filtered, and of those passed and kept.
    external: dict[str, int] = Field(default_factory=dict)
    privacy: str = ""  # result of the attack on the synthetic records: leak, gap, none shown …

    def __str__(self) -> str:
        """The answers, and where the report is; the fields have the rest."""
        return "\n".join([*self._answers, self._end])

    def __repr__(self) -> str:
        place = self.report or self.manifest
        return f"RunResult(status={self.status!r}, version={self.version}, report={place!r}, ...)"

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(sentence)}</p>" for sentence in self._answers]
        if self.recipe is not None:
            parts.append(self.recipe._repr_html_())
        parts.append(self.plan._repr_html_())
        return "".join([*parts, f"<p>{escape(self._end)}</p>"])

    @property
    def _answers(self) -> tuple[str, ...]:
        return self.verdict.answers if self.verdict else ()

    @property
    def _end(self) -> str:
        place = self.report or self.manifest
        return f"{self.status}: {place}" if place else self.status


class TrainResult(Result):
    """Outcome of a training run, as ``train --json`` prints it."""

    status: Literal["trained", "unchanged"]  # unchanged: the same model existed
    model: ModelRef
    plan: BalancePlan
    n_records: int  # of the source, hold-out included
    quarantined: int
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()

"""Facts of the search on val: what was tried in which rung, how it scored, and why it was dropped."""

from __future__ import annotations

from pydantic import Field

from prefect_augment.datatypes import Arm, Fact

__all__ = ["Rung", "SearchFacts", "Trial"]


class Trial(Fact):
    """One setting of one arm in one rung."""

    arm: Arm
    model: str = ""  # kind of the generative model, of arms that have one
    score: float  # balanced accuracy on val, mean over learners, folds and seeds
    spread: float | None  # standard deviation over these folds and seeds; None where there is one
    n_scores: int  # folds times seeds
    seconds: float = 0.0  # 0 where budget.steps asks for the same bytes every time
    kept: bool
    reason: str = ""  # why it was dropped


class Rung(Fact):
    """One round of the search: everything in it was trained alike."""

    name: str
    effort: float  # share of the steps of a learner that judges in full
    n_seeds: int
    trials: tuple[Trial, ...]
    note: str = ""

    @property
    def n_kept(self) -> int:
        """Trials that went on."""
        return sum(trial.kept for trial in self.trials)


class SearchFacts(Fact):
    """The search as a whole; key ``search`` of ``report.json``."""

    rungs: tuple[Rung, ...]
    n_settings: int  # at most tried of an arm: the same for baselines and models
    passed_over: dict[str, str] = Field(
        default_factory=dict
    )  # kind of model -> why it was not tried

    @property
    def n_trials(self) -> int:
        """Settings that were tried in the first rung."""
        return len(self.rungs[0].trials) if self.rungs else 0

"""Compare: which candidates are kept, which strategy wins on validation, and what the hold-out confirms."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from prefect_augment.evaluation.verdict import selection
from prefect_augment.experiment import confirmation, privacy, score, search
from prefect_augment.experiment.filter import filter_candidates as filter_staged
from prefect_augment.params import Budget
from prefect_augment.schema import (
    Choice,
    DatasetRef,
    Experiment,
    FilterResult,
    Privacy,
    Strategy,
    StrategyScore,
    Verdict,
)
from prefect_augment.tasks._display import progress
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import open_root, step
from prefect_augment.text import class_list


@step(lambda p: f"filter {class_list(p['candidates'].class_counts)}")
def filter_candidates(experiment: Experiment, candidates: DatasetRef) -> FilterResult:
    """Drop candidates that copy a record, look like another class or leave the domain.

    Parameters
    ----------
    experiment : Experiment
        Training and validation records are read, the hold-out is not.
    candidates : DatasetRef
        Sampled records.

    Returns
    -------
    FilterResult
        Candidates, passed and kept per class, and the reasons of those dropped.
    """
    dataset = experiment.dataset
    with progress("filter", dataset.root), _gpu(experiment):
        return filter_staged(experiment, candidates, open_root(dataset))


@step("measure privacy")
def measure_privacy(experiment: Experiment, drawn: DatasetRef) -> Privacy:
    """Measure what synthetic records reveal about the records that they were made from.

    Reports and cards of the same records that are written later include it.

    Parameters
    ----------
    experiment : Experiment
        With the kept candidates; the hold-out is not read.
    drawn : DatasetRef
        Records of a model that was trained on the training part.

    Returns
    -------
    Privacy
        A membership-inference attack, distances to the closest record, exposure of isolated ones.
    """
    return privacy.measure(experiment, drawn, open_root(experiment.dataset))


@step(lambda p: f"score {p['strategy'].name}, seed {p['seed']}")
def score_strategy(experiment: Experiment, strategy: Strategy, seed: int) -> StrategyScore:
    """Train the estimators on one strategy and score them on validation records.

    Parameters
    ----------
    experiment : Experiment
        What the strategy is made of; strategies of images train on its candidates.
    strategy : Strategy
    seed : int
        0, 1, 2 …: another partition and other random records.

    Returns
    -------
    StrategyScore
        Over the compared classes.
    """
    with _gpu(experiment):
        return score.score(experiment, strategy, seed, open_root(experiment.dataset))


@step(lambda p: f"pilots of {p['strategies'][0].name}, {len(p['strategies'])} settings")
def pilot_strategy(
    experiment: Experiment, strategies: Sequence[Strategy], *, budget: Budget | None = None
) -> tuple[StrategyScore, ...]:
    """Score each setting of one strategy on validation records, with a part of the estimators' steps.

    Parameters
    ----------
    experiment : Experiment
        As for :func:`score_strategy`.
    strategies : sequence of Strategy
        One strategy with each of its settings.
    budget : Budget, optional
        Trains a model of tables for these pilots alone.

    Returns
    -------
    tuple of StrategyScore
        In the order of ``strategies``.
    """
    with _gpu(experiment):
        store = open_root(experiment.dataset)
        return search.pilot(experiment, strategies, store, budget=budget)


@step(lambda p: f"choose of {len({s.strategy.name for s in p['scores']})}")
def choose_strategy(scores: Sequence[StrategyScore], *, prefer_model: bool = False) -> Choice:
    """Choose the best strategy and the best baseline by their scores on validation records.

    Parameters
    ----------
    scores : sequence of StrategyScore
        One seed or more per strategy.
    prefer_model : bool
        Choose the best strategy with synthetic records even where another is better.

    Returns
    -------
    Choice
        What the hold-out will compare.
    """
    return selection.choose_strategy(scores, prefer_model=prefer_model)


@step(
    lambda p: (
        f"confirm {p['choice'].chosen.name} against {p['choice'].baseline.name}"
        if p["choice"].chosen != p["choice"].baseline
        else f"confirm {p['choice'].chosen.name} against the data as they are"
    )
)
def confirm_choice(
    experiment: Experiment, choice: Choice, scores: Sequence[StrategyScore], *, workers: int = 1
) -> Verdict:
    """Compare the choice, the best baseline and the data as they are on the hold-out, which is read once.

    Parameters
    ----------
    experiment : Experiment
        Records with a hold-out, and what strategies are made of.
    choice : Choice
        Fixed beforehand on validation records.
    scores : sequence of StrategyScore
        For the thresholds that were tuned on validation records.
    workers : int
        Strategies that are trained at the same time.

    Returns
    -------
    Verdict
        Accept, reject or inconclusive, with intervals and reasons.
    """
    dataset = experiment.dataset
    with progress("confirm on the hold-out", dataset.root), _gpu(experiment):
        store = open_root(dataset)
        return confirmation.confirm(experiment, choice, scores, store, workers=workers)


@step(lambda p: f"fit on all training records, part {p['part'] + 1} of {p['n_parts']}")
def fit_part(
    experiment: Experiment,
    choice: Choice,
    scores: Sequence[StrategyScore],
    *,
    part: int,
    n_parts: int,
) -> int:
    """Train a part of the estimators that :func:`confirm_choice` compares, and stage what they predict.

    Parameters
    ----------
    experiment, choice, scores
        As for :func:`confirm_choice`.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many were trained here.
    """
    with _gpu(experiment):
        store = open_root(experiment.dataset)
        return confirmation.fit_part(experiment, choice, scores, store, part=part, n_parts=n_parts)


def _gpu(experiment: Experiment) -> AbstractContextManager[None]:
    """Hold a GPU for images, whose classifier is a network."""
    is_image = experiment.dataset.modality == "image"
    return gpu_slot(experiment.params.budget.device, network=is_image)

"""Strategies: the training sets that are compared, made from the same real records.

For the same ``amount`` every strategy brings the classes to the same *effective counts* (records times weight). They
differ in what fills the difference: weight, copies, SMOTE records, synthetic records, or both. Strategies of images
draw records by weight, with classic augmentation on the fly, and may use the loss instead.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.params import Classic, Quality
from prefect_augment.plan.recipe_text import recipe_sentence
from prefect_augment.plan.weights import shares_of, shares_trained, smoothing_by_class, with_priors
from prefect_augment.schema import (
    BalancePlan,
    EncoderInfo,
    Experiment,
    Modality,
    Recipe,
    Strategy,
    StrategyScore,
)

# Values of Classic.table -> names of strategies.
TITLES = {
    "smote": "SMOTE",
    "borderline": "Borderline-SMOTE",
    "adasyn": "ADASYN",
    "oversampling": "smoothed copies",
    "jitter": "jittered copies",
}
# Half of the balance (the square root of the imbalance) and all of it, where a strategy is scored on its own; a
# run searches more (search_space.py).
AMOUNTS = (0.5, 1.0)
# A class that is too small to be compared is drawn at most this often per real record.
MAX_WEIGHT_NOT_COMPARED = 5.0
# Candidates per record wanted. Utility keeps the best third of those that pass (research: draw three
# times, keep the third most confidently of the class); both leave room for what the filter drops.
OVERDRAW = {"utility": 4.0, "faithful": 1.5}
# Share of the steps that draw synthetic images; the rest draws real ones only. It repaired most of
# the harm that synthetic images did (research on images, section 9).
SYNTHETIC_SHARE_OF_STEPS = 0.6
# Families that keep the class frequencies.
NATURAL = ("as_is", "threshold", "loss", "external", "clean")

# Strategies of classic.image_strategies. On draws as the records are, CutMix with a rare partner is CMO.
IMAGE_STRATEGIES: dict[str, dict[str, Any]] = {
    "CMO": {"family": "loss", "mixing": "cutmix", "mixing_prob": 0.5},
    "CutMix": {"family": "weights", "mixing": "cutmix", "mixing_prob": 0.5},
    "mixup": {"family": "weights", "mixing": "mixup", "mixing_prob": 0.5},
    "deferred re-weighting": {"family": "weights", "deferred": 0.6},
    "label-aware smoothing": {"family": "weights", "smoothing": 0.3},
    "patch features": {
        "family": "weights",
        "patches": 300,
        "C": 1.0,
        "mirroring": "horizontal",
        "classic_prob": 0.0,
    },
}

AS_IS = Strategy(name="as is", family="as_is", amount=1.0)
PROBE = Strategy(name="linear probe", family="probe", amount=0.0, C=0.01)
CLEAN = Strategy(name="clean labels", family="clean", amount=0.0, doubted_weight=0.0)
EXTERNAL = Strategy(name="external records", family="external", tune_threshold=True)


def make_strategies(
    modality: Modality,
    *,
    model: str | None,
    classic: Classic,
    soft_labels: bool = False,
    own_estimators: bool = False,
    clean: bool = False,
    encoder: bool = False,
) -> tuple[Strategy, ...]:
    """The strategies for a kind of data, simplest first; amount 0 means: search :data:`AMOUNTS`.

    The data as they are come untuned, which is what the user has; all others with tuned thresholds. A
    threshold costs nothing and moves balanced accuracy by more than most training sets do, so a strategy
    that were compared without one would lose for that alone.

    ``model`` is the kind of generative model whose candidates there are. With ``soft_labels`` synthetic records are
    not mixed with SMOTE records, which would contradict their labels. Two strategies then show what the labels bring
    alone: soft labels of the real records, and the ensemble that gives them in the place of the estimators, a control
    that is never published. ``own_estimators`` of the user's are bagged too: the built-in ones gain nothing by bags,
    which take ten times as long. Patch features would take the place of the user's networks, and are left out.
    ``clean`` is for tables with labels that are doubted, ``encoder`` for images with a pretrained encoder.
    """
    if modality == "image":
        strategies = _image_strategies(
            model, classic, own_estimators=own_estimators, encoder=encoder
        )
    else:
        strategies = table_strategies(
            model, classic, soft_labels=soft_labels, bagging=own_estimators, clean=clean
        )
    return (AS_IS, *(s.model_copy(update={"tune_threshold": True}) for s in strategies))


def table_strategies(
    model: str | None, classic: Classic, *, soft_labels: bool, bagging: bool, clean: bool
) -> list[Strategy]:
    """The strategies for a table but for the data as they are."""
    title = TITLES.get(classic.table, "")
    strategies = [
        Strategy(name="threshold", family="threshold", amount=1.0),
        Strategy(name="class weights", family="weights", amount=0.0),
        Strategy(name="resampling", family="resampling", amount=0.0),
    ]
    if clean:
        strategies.append(CLEAN)
    if title:
        strategies.append(Strategy(name=title, family="classic", amount=0.0))
    if bagging:
        strategies.append(Strategy(name="balanced bagging", family="bagging", amount=0.0))
    if model and soft_labels:
        strategies += [
            Strategy(name="soft labels", family="soft_labels", amount=0.0),
            Strategy(name="ensemble", family="ensemble", amount=1.0),
        ]
    if model:
        strategies.append(Strategy(name=model, family="model", amount=0.0))
    if model and title and not soft_labels:
        strategies.append(Strategy(name=f"{title} + {model}", family="mixture", amount=0.0))
    return strategies


def _image_strategies(
    model: str | None, classic: Classic, *, own_estimators: bool, encoder: bool
) -> list[Strategy]:
    """The strategies for images but for the data as they are.

    Logit adjustment after training (Menon et al. 2021, section 4.1) has no strategy of its own: tuned
    thresholds do it, and balanced softmax is its loss.
    """
    prob = classic.image_prob if classic.image != "none" else 0.0
    strategies = [
        Strategy(name="threshold", family="threshold", amount=1.0),
        Strategy(name="balanced softmax", family="loss", amount=0.0),
        Strategy(name="resampling", family="resampling", amount=0.0),
    ]
    own: dict[str, Any] = {"amount": 0.0, "classic_prob": prob}
    if prob:
        strategies += [
            Strategy(name="resampling + classic", family="classic", **own),
            Strategy(name="balanced softmax + classic", family="loss", **own),
        ]
    more = [
        Strategy(name=name, **(own | IMAGE_STRATEGIES[name]))
        for name in dict.fromkeys(classic.image_strategies)
    ]
    strategies += [one for one in more if not (one.patches and own_estimators)]
    if encoder:
        strategies.append(PROBE)
    if model:
        with_model = Strategy(
            name=model, family="model", amount=0.0, real_only_finish=SYNTHETIC_SHARE_OF_STEPS
        )
        strategies.append(with_model)
        if prob:
            both = {"name": f"classic + {model}", "family": "mixture", "classic_prob": prob}
            strategies.append(with_model.model_copy(update=both))
    return strategies


def as_trained(strategy: Strategy) -> Strategy:
    """The strategy without thresholds, which are applied to predictions alone."""
    if strategy.family == "threshold":
        strategy = strategy.model_copy(update={"name": "as is", "family": "as_is"})
    return strategy.model_copy(update={"tune_threshold": False})


@dataclass(frozen=True)
class Wanted:
    """Records that a strategy wants of one stratum; ``synthetic + classic + copies`` are added to the real ones."""

    n_real: int
    effective: float  # records times weight
    synthetic: int = 0  # with soft labels, rows
    classic: int = 0
    copies: int = 0
    share: float | None = None  # with soft labels, the sum of the rows' shares
    synthetic_weight: float = 1.0

    @property
    def weight(self) -> float:
        """Weight of each record of the stratum, before normalising."""
        return self.effective / max(1, self.counted + self.copies)

    @property
    def counted(self) -> float:
        """What the stored records count before weighting."""
        share = self.synthetic if self.share is None else self.share
        return self.n_real + self.classic + self.synthetic_weight * share

    @property
    def stored(self) -> int:
        """Records of the stratum without copies, which weights or draws can replace."""
        return self.n_real + self.synthetic + self.classic


def wanted_records(
    strategy: Strategy,
    counts: Mapping[str, int],
    plan: BalancePlan,
    *,
    available: Mapping[str, int] | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Wanted]:
    """Records that ``strategy`` wants per stratum, for a training part with ``counts`` real records.

    ``amount`` a in [0, 1] gives the effective counts n (n_max / n)^a, with n_max the largest stratum of the same
    ``by`` cell; 0.5 is the square-root rule, 1 is full balance. Added records never exceed the plan's target nor its
    number of synthetic ones, scaled to the part, nor the ``available`` synthetic records. With soft labels ``shares``
    sum up the available rows; a strategy takes all of them, since their weight brings the balance.
    """
    cells = {entry.name: tuple(sorted(entry.by.items())) for entry in plan.classes}
    largest: dict[tuple[tuple[str, str], ...], int] = {}
    for name, cell in cells.items():
        largest[cell] = max(largest.get(cell, 0), counts.get(name, 0))
    wanted = {}
    for entry in plan.classes:
        n = counts.get(entry.name, 0)
        if n == 0:
            continue
        effective = float(n)
        if strategy.family not in NATURAL:
            effective = n * (largest[cells[entry.name]] / n) ** strategy.amount
        if not entry.compared:
            effective = min(effective, MAX_WEIGHT_NOT_COMPARED * n)
        share = n / entry.n_real if entry.n_real else 0.0
        room = max(0, min(round((entry.target - entry.n_real) * share), round(effective) - n))
        synthetic = classic = copies = 0
        counted = None
        if strategy.has_model and shares is not None:
            synthetic, counted = (available or {}).get(entry.name, 0), shares.get(entry.name, 0.0)
        elif strategy.family == "external":
            # External records are compared as they are: all of them, unweighted.
            synthetic = (available or {}).get(entry.name, 0)
            effective = float(n + synthetic)
        elif strategy.has_model:
            # A mixture is half synthetic, half SMOTE; on the fly, classic takes no room.
            most = room // 2 if strategy.family == "mixture" and not strategy.classic_prob else room
            synthetic = min(most, round(entry.n_synthetic * share))
            if strategy.per_real:
                synthetic = min(synthetic, round(strategy.per_real * n))
            if available is not None:
                synthetic = min(synthetic, available.get(entry.name, 0))
        if strategy.family in ("classic", "mixture") and not strategy.classic_prob:
            classic = max(0, room - synthetic)
        if strategy.family == "resampling":
            copies = max(0, round(effective) - n)
        wanted[entry.name] = Wanted(
            n, effective, synthetic, classic, copies, counted, strategy.synthetic_weight
        )
    return wanted


def make_recipe(
    experiment: Experiment, strategy: Strategy, scores: Sequence[StrategyScore]
) -> Recipe:
    """The recipe of a strategy: what to publish and how to train on it.

    ``scores`` bring the thresholds that were tuned on validation records.
    """
    plan, candidates, classic = experiment.plan, experiment.candidates, experiment.params.classic
    kept, shares = (candidates.kept_counts, candidates.shares) if candidates else (None, None)
    copies = experiment.params.publish.materialise == "copies"
    policy = None
    if strategy.classic_prob:
        policy = ImagePolicy.from_params(classic).stronger(strategy.classic_strength)
    name = policy.name if policy else ""
    encoder = EncoderInfo.of(experiment.params.encoder) if strategy.family == "probe" else None
    counts = {c.name: c.n_real for c in plan.classes}
    wanted = wanted_records(strategy, counts, plan, available=kept, shares=shares or None)
    # Copies are only written on request: weights do the same in a fraction of the bytes.
    stored = {k: w.stored for k, w in wanted.items()}
    weight = {k: w.effective / max(1, w.counted) for k, w in wanted.items()}
    mean = sum(weight[k] * w.counted for k, w in wanted.items()) / max(1, sum(stored.values()))
    n_copies = (
        {k: max(0, round(w.effective) - stored[k]) for k, w in wanted.items()} if copies else {}
    )
    thresholds = next((s.thresholds for s in scores if s.strategy == strategy), {})
    replaces_estimators = strategy.family == "probe" or strategy.patches
    if replaces_estimators and thresholds:
        thresholds = {strategy.name: next(iter(thresholds.values()))}
    smoothing: dict[str, float] = {}
    if strategy.smoothing:
        n_real = Counter[str]()
        for entry in plan.classes:
            n_real[entry.label] += entry.n_real
        shares_given = smoothing_by_class([*n_real.values()], strategy.smoothing)
        smoothing = dict(zip(n_real, shares_given.tolist(), strict=True))
    recipe = Recipe(
        strategy=strategy,
        class_weight={k: (1.0 if copies else value / mean) for k, value in weight.items()},
        synthetic={k: w.synthetic for k, w in wanted.items() if w.synthetic},
        shares={k: w.share for k, w in wanted.items() if w.share},
        classic={k: w.classic for k, w in wanted.items() if w.classic},
        copies={k: n for k, n in n_copies.items() if n},
        thresholds=thresholds,
        estimators={e.title: e.digest for e in experiment.params.evaluation.own_estimators},
        loss="balanced_softmax" if strategy.family == "loss" else "cross_entropy",
        mixing=strategy.mixing,
        mixing_prob=strategy.mixing_prob,
        smoothing=smoothing,
        deferred=strategy.deferred,
        classic_policy=name,
        classic_config=policy.info if policy else {},
        classic_prob=strategy.classic_prob,
        real_only_finish=strategy.real_only_finish,
        synthetic_weight=strategy.synthetic_weight,
        encoder=encoder,
        squares=plan.classifier_input if strategy.patches else (0, 0),
        sentence=recipe_sentence(
            strategy,
            n_synthetic=sum(w.synthetic for w in wanted.values()),
            n_classic=sum(w.classic for w in wanted.values()),
            copies=copies,
            policy=name,
            soft_labels=any(w.share for w in wanted.values()),
            encoder=encoder,
        ),
    )
    recipe = with_priors(recipe, plan)
    sampled = next((s.sampled for s in scores if s.strategy == strategy), {})
    return _for_all_records(recipe, plan, sampled) if sampled else recipe


def _for_all_records(recipe: Recipe, plan: BalancePlan, sampled: Mapping[str, int]) -> Recipe:
    """The recipe with thresholds for estimators that are trained on all records.

    They were tuned for estimators of a sample, of which rare classes are a larger share. By Bayes' rule a
    class's probability is in proportion to its share of what was trained on.
    """
    strategy = recipe.strategy
    wanted = wanted_records(strategy, sampled, plan)
    shares = shares_of(plan, {name: one.effective for name, one in wanted.items()})
    tuned_for = shares_trained(shares, strategy)
    factor = {
        name: tuned_for[name] / share
        for name, share in recipe.prior_train.items()
        if share and tuned_for.get(name)
    }
    thresholds = {
        estimator: {name: value * factor.get(name, 1.0) for name, value in of.items()}
        for estimator, of in recipe.thresholds.items()
    }
    return recipe.model_copy(update={"thresholds": thresholds})


def plain_recipe(
    plan: BalancePlan,
    kept: Mapping[str, int],
    shares: Mapping[str, float] | None = None,
    classic: Mapping[str, int] | None = None,
) -> Recipe:
    """The recipe of all records, published without a comparison.

    ``shares`` sum up rows with soft labels. Such records are drawn of every class, at target or
    not, so weights bring the classes to their targets; other records are not weighted.
    """
    n_classic = {name: n for name, n in (classic or {}).items() if n}
    added = [f"{sum(n_classic.values()):,} classic records"] if n_classic else []
    if kept or not n_classic:
        n = f"{sum(kept.values()):,}"
        weighted = f"{n} rows of synthetic records, to be weighted by aug_weight,"
        added.append(weighted if shares else f"{n} synthetic records")
    recipe = Recipe(
        strategy=Strategy(
            name="not compared", family="model" if kept else "classic" if n_classic else "as_is"
        ),
        class_weight=_weights_to_targets(plan, kept, shares or {}, n_classic),
        synthetic={name: n for name, n in kept.items() if n},
        classic=n_classic,
        copies={},
        shares={name: share for name, share in (shares or {}).items() if share},
        sentence=f"{' and '.join(added)} were added without a comparison: nothing is known about whether they help.",
    )
    return with_priors(recipe, plan)


def _weights_to_targets(
    plan: BalancePlan,
    kept: Mapping[str, int],
    shares: Mapping[str, float],
    classic: Mapping[str, int],
) -> dict[str, float]:
    """By stratum, the weight that brings it to its target, of mean 1 over all rows."""
    if not any(shares.values()):
        return {c.name: 1.0 for c in plan.classes}
    whole = {c.name: c.n_real + classic.get(c.name, 0) for c in plan.classes}
    counted = {name: n + shares.get(name, 0.0) for name, n in whole.items()}
    n_rows = sum(whole.values()) + sum(kept.values())
    mean = sum(c.target for c in plan.classes if counted[c.name]) / n_rows
    return {
        c.name: c.target / counted[c.name] / mean if counted[c.name] else 1.0 for c in plan.classes
    }


def classic_recipe(plan: BalancePlan, modality: Modality, classic: Classic) -> Recipe:
    """The recipe of classic records up to each class's target, published without a comparison."""
    # A stratum that is only in the hold-out has no record to start from.
    n_classic = {c.name: c.n_classic for c in plan.classes if c.n_classic and c.n_real}
    table = f"{TITLES.get(classic.table, 'classic')} records"
    kind = "changed copies of images" if modality == "image" else table
    what = f"{sum(n_classic.values()):,} {kind} were added, up to the target of each class"
    policy = ImagePolicy.from_params(classic) if modality == "image" and n_classic else None
    recipe = Recipe(
        strategy=Strategy(
            name="classic augmentation, not compared", family="classic" if n_classic else "as_is"
        ),
        class_weight={c.name: 1.0 for c in plan.classes},
        synthetic={},
        classic=n_classic,
        copies={},
        classic_config=policy.info if policy else {},  # of the copies that were written
        sentence=(
            f"{what if n_classic else 'Nothing was added: every class is at its target'}; read the train split as it "
            "is. Nothing was compared: whether this helps is not known."
        ),
    )
    return with_priors(recipe, plan)


def candidates_wanted(
    plan: BalancePlan, quality: Quality, strata: Collection[str]
) -> dict[str, int]:
    """Candidates to draw per stratum, so that enough pass the filter.

    ``strata`` are those that the model can sample: it may have trained on fewer records than the plan expects.
    """
    factor = OVERDRAW["faithful" if plan.soft_labels else quality.purpose]
    return {
        c.name: math.ceil(factor * c.n_synthetic)
        for c in plan.classes
        if c.n_synthetic and c.name in strata
    }

"""Results as tables and lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_augment.schema import (
    BalancePlan,
    Interval,
    LatentResult,
    Result,
    RunResult,
    StrategyScore,
    TrainResult,
    Verdict,
)
from prefect_augment.text import duration

if TYPE_CHECKING:
    from prefect_augment.schema import PolicyCheck

# A million of each; S3 Standard, us-east-1, November 2026.
DOLLARS_A_WRITE, DOLLARS_A_READ = 5.0, 0.4
WIDE = 100  # columns of a terminal in which three scores of two estimators have room
COLOURS = {"accept": "green", "reject": "red", "inconclusive": "yellow"}


def show_run(console: Console, result: RunResult) -> None:
    """Print a run: classes before and after, strategies, verdict, recipe, where things are."""
    _show_classes(console, result)
    if result.status == "planned":
        _show_estimate(console, result.plan)
        return
    _show_strategies(console, result.strategies)
    _show_verdict(console, result.verdict)
    if result.recipe is not None:
        console.print(
            f"[bold]Recipe[/]: {escape(result.recipe.strategy.name)}. {escape(result.recipe.sentence)}"
        )
    if result.approval is not None:
        console.print(escape(result.approval.sentence), soft_wrap=True)
    if result.status == "awaiting_approval":
        console.print(
            f"[bold]Nothing is published yet[/]: proposal {result.proposal} waits for "
            "`prefect-augment approve`, with --reject or --amount CLASS=N where wanted.",
            soft_wrap=True,
            highlight=False,
        )
    if result.status == "rejected":
        console.print("[bold]Rejected[/]: nothing was published.")
    if result.version is not None:
        word = "Published" if result.status == "published" else "Nothing new since"
        console.print(
            f"[bold]{word}[/] version {result.version}: {escape(result.manifest)}", soft_wrap=True
        )
    console.print(f"[bold]Report[/]: {escape(result.report)}", soft_wrap=True)
    _show_cost(console, result)
    if result.version is not None:
        place = escape(result.manifest.partition("/_manifests/")[0])
        console.print(
            f"[bold]Next[/]: prefect-augment inspect {place}, or in Python open_dataset({place!r}).",
            soft_wrap=True,
            highlight=False,
        )


def _show_cost(console: Console, result: RunResult | TrainResult | LatentResult) -> None:
    memory = result.peak_rss_bytes / 1e6
    console.print(f"{result.seconds:.1f} s, peak memory {memory:.0f} MB", highlight=False)


def show_demo(
    console: Console, results: Mapping[str, RunResult], places: Mapping[str, str], *, seconds: float
) -> None:
    """Print the end of a demo: per part the version, the verdict and where to look."""
    console.print(f"[bold]The demo is done[/], in {seconds:.0f} s:", highlight=False)
    for name, result in results.items():
        verdict, place = result.verdict, escape(places[name])
        assert verdict is not None
        word = "published" if result.status == "published" else "there already"
        colour = COLOURS[verdict.decision]
        lines = (
            f"- [bold]{name}[/]: version {result.version} {word}. [{colour}]{escape(verdict.headline)}[/]",
            f"  Look at it: {escape(result.report)}",
            f"  and with: prefect-augment inspect {place}",
        )
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)


def show_evaluation(console: Console, result: RunResult) -> None:
    """Print the result of ``evaluate``."""
    counts = result.external
    if counts:
        console.print(
            f"{counts['given']:,} records given, {counts['quarantined']:,} of them unusable; of "
            f"{counts['filtered']:,} filtered {counts['passed']:,} pass.",
            highlight=False,
        )
    _show_strategies(console, result.strategies)
    _show_verdict(console, result.verdict)
    for note in result.notes:
        console.print(f"- {escape(note)}", highlight=False, soft_wrap=True)
    console.print(f"[bold]Report[/]: {escape(result.report)}", soft_wrap=True)


def show_training(console: Console, result: TrainResult) -> None:
    """Print the trained model, its records and its location."""
    model = result.model
    word = "Nothing new, there was a" if result.status == "unchanged" else "Trained a"
    steps = f"{model.steps:,} steps on " if model.steps else ""
    console.print(
        f"[bold]{word}[/] model {escape(model.kind)}: {steps}{model.n_training:,} training records of "
        f"{result.n_records:,}.",
        highlight=False,
    )
    console.print(f"[bold]Can sample[/]: {escape(', '.join(model.strata)) or 'no class'}")
    console.print(f"[bold]Checkpoint[/]: {escape(model.digest)}", soft_wrap=True)
    console.print(f"[bold]Encoder[/]: {escape(model.encoder_digest)}", soft_wrap=True)
    console.print(f"[bold]Kept as[/]: {escape(f'{model.root}/{model.checkpoint}')}", soft_wrap=True)
    for note in result.notes:
        console.print(f"- {escape(note)}", highlight=False)
    _show_cost(console, result)


def show_policy(console: Console, result: PolicyCheck) -> None:
    """Print the check of a policy, an operation per line."""
    table = Table("operation", "another class", "at least", "worst class", "of it", "taken for")
    for op in result.operations:
        table.add_row(
            escape(op.name), f"{op.rate:.1%}", f"{op.low:.1%}", escape(op.worst_class),
            f"{op.worst_rate:.1%}", escape(op.becomes), style="red" if op.damages else None,
        )  # fmt: skip
    console.print(table)
    bad = ", ".join(op.name for op in result.damaging)
    word = f"May change what images show: {bad}." if bad else "No damage was found."
    console.print(f"[bold]{escape((result.note and f'Not checked: {result.note}.') or word)}[/]")
    console.print(
        f"The classifier is right about {result.accuracy:.1%} of {result.n_images:,} unchanged images.",
        highlight=False,
    )
    console.print(f"[bold]Pictures[/]: {escape(result.picture)}", soft_wrap=True)


def show_latents(console: Console, result: LatentResult) -> None:
    """Print the summary of a use of latents, its model and its location."""
    from prefect_augment.latents.page import latents_sentence

    console.print(f"[bold]{escape(latents_sentence(result.latents))}[/]", highlight=False)
    summary = result.latents.summary
    if result.latents.use == "anomalies":
        _show_flagged(console, summary["counts"])
    if result.latents.use == "reconstructions":
        _show_value(console, summary["parts"].get("validation", summary["parts"]), 0)
    console.print(
        f"[bold]Model[/]: {escape(result.model.kind)} {result.model.digest[:12]}, trained on "
        f"{result.model.n_training:,} records",
        highlight=False,
    )
    for note in result.notes:
        console.print(f"- {escape(note)}", highlight=False)
    console.print(f"[bold]Kept as[/]: {escape(result.uri)}", soft_wrap=True)
    _show_cost(console, result)


def _show_flagged(console: Console, counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    table = Table("part", "class", "records", "flagged", title="Beyond the threshold")
    for part, classes in counts.items():
        for name, c in classes.items():
            share = c["flagged"] / c["records"]
            table.add_row(
                part, escape(name), f"{c['records']:,}", f"{c['flagged']:,} ({share:.1%})"
            )
    console.print(table)


def show_profile(console: Console, profile: Any) -> None:
    """Print a source's columns, classes and problems."""
    table = Table("column", "type", "kind", "null", "unique", "note", title=escape(profile.source))
    for column in profile.columns:
        table.add_row(
            escape(column.name),
            escape(column.arrow_type),
            column.kind,
            f"{column.n_null:,}",
            "" if column.n_unique < 0 else f"{column.n_unique:,}",  # images are not counted
            escape(column.note),
        )
    console.print(table)
    total = sum(profile.class_counts.values())
    if not profile.is_valid:
        console.print(f"[bold red]cannot be used:[/] {escape(profile.notes[0])}", highlight=False)
        for note in profile.notes[1:]:
            console.print(f"- {escape(note)}", highlight=False)
        return
    classes = Table(f"class ({escape(profile.label)})", "records", "share")
    for name, n in profile.class_counts.items():
        classes.add_row(escape(name), f"{n:,}", f"{n / total:.1%}")
    console.print(classes)
    reasons = "; ".join(f"{n:,} × {reason}" for reason, n in profile.quarantine.items())
    console.print(
        f"Imbalance ratio {profile.imbalance_ratio:.1f}, quarantined {profile.n_quarantined:,}"
        f"{escape(f': {reasons}') if reasons else ''}.",
        highlight=False,
    )
    for note in profile.notes:
        console.print(f"- {escape(note)}", highlight=False)


def show_result(console: Console, result: Result) -> None:
    """Print any other result as indented names and values."""
    _show_value(console, result.model_dump(mode="json"), 0)


def show_checks(console: Console, checks: Sequence[Any]) -> None:
    """Print the checks of ``doctor``, each with the advice below it."""
    colours = {"ok": "green", "warning": "yellow", "problem": "red"}
    area = ""
    for check in checks:
        if check.area != area:
            area = check.area
            console.print(f"[bold]{escape(area)}[/]")
        colour = colours[check.status]
        line = f"  [{colour}]{check.status:<8}[/] {escape(check.name)}: {escape(check.finding)}"
        console.print(line, highlight=False, soft_wrap=True)
        if check.advice:
            console.print(f"           {escape(check.advice)}", highlight=False, soft_wrap=True)
    n = {status: sum(c.status == status for c in checks) for status in colours}
    console.print(", ".join(f"{status}: {count}" for status, count in n.items()), highlight=False)


def _show_value(console: Console, value: Any, depth: int) -> None:
    indent = "  " * depth
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping | list) and item:
                console.print(f"{indent}[bold]{escape(str(name))}[/]:")
                _show_value(console, item, depth + 1)
            else:
                text = "none" if item in ({}, [], None, "") else str(item)
                console.print(
                    f"{indent}[bold]{escape(str(name))}[/]: {escape(text)}", soft_wrap=True
                )
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                _show_value(console, item, depth)
                console.print()
            else:
                console.print(f"{indent}- {escape(str(item))}", soft_wrap=True)
    else:
        console.print(f"{indent}{escape(str(value))}")


def _show_classes(console: Console, result: RunResult) -> None:
    table = Table("class", title="Classes (training records)")
    train = result.counts.get("train", {})
    recipe = result.recipe
    heads = ("before", "target", "synthetic", "classic", "after", "weighted")
    for head in heads if recipe is not None else heads[:-1]:
        table.add_column(head, justify="right")
    for entry in result.plan.classes:
        synthetic, classic, weighted = entry.n_synthetic, entry.n_classic, []
        if recipe is not None:
            synthetic = recipe.synthetic.get(entry.name, 0)
            classic = recipe.classic.get(entry.name, 0)
            n = entry.n_real + recipe.counted(entry.name)
            weighted = [f"{n * recipe.class_weight.get(entry.name, 1.0):,.0f}"]
        after = entry.n_real + synthetic + classic
        if train and not entry.by:
            after = sum(train.get(entry.label, {}).values())
        name = escape(entry.name) + ("" if entry.compared else " (not compared)")
        counts = (entry.n_real, entry.target, synthetic, classic, after)
        table.add_row(name, *(f"{n:,}" for n in counts), *weighted)
    console.print(table)
    for warning in result.plan.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")


def _show_estimate(console: Console, plan: BalancePlan) -> None:
    if plan.soft_labels:
        console.print(
            "Synthetic records have soft labels: each gets a row for every likely class. More are drawn than the "
            "targets say, and weights bring the balance."
        )
    needs = plan.estimate
    dollars = (needs.writes * DOLLARS_A_WRITE + needs.reads * DOLLARS_A_READ) / 1e6
    console.print(
        f"Estimate: {duration(needs.seconds)} of one core, {needs.output_bytes / 1e6:,.1f} MB written, "
        f"{needs.memory_bytes / 1e6:,.0f} MB of memory. In an object store: {needs.writes:,} requests that write or "
        f"list, {needs.reads:,} that read, ${dollars:.4f} at S3's list prices. Nothing was trained or published.",
        highlight=False,
    )


def _show_strategies(console: Console, scores: tuple[StrategyScore, ...]) -> None:
    if not scores:
        return
    estimators, measure = list(scores[0].estimators), scores[0].measure
    table = Table(
        "strategy", "amount", "seeds", measure.title, title="Strategies on validation records"
    )
    is_wide = console.width >= WIDE  # else every cell would take three lines
    for name in estimators:
        also = " / macro-F1 / AUPRC" if is_wide else ""
        table.add_column(f"{escape(name)}\nbal. acc.{also}", justify="right")
    by_strategy: dict[str, list[StrategyScore]] = {}
    for score in scores:
        by_strategy.setdefault(score.strategy.name, []).append(score)
    for name, group in by_strategy.items():
        values = [measure.shown(s.score) for s in group]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        first = group[0]
        cells = [
            f"{x.balanced_accuracy:.3f}" + f" / {x.macro_f1:.3f} / {x.auprc:.3f}" * is_wide
            for x in (first.estimators[k] for k in estimators)
        ]
        mean = f"{sum(values) / len(values):.3f}{spread}"
        if first.strategy.is_control:
            name += " (control)"
        table.add_row(escape(name), f"{first.strategy.amount:g}", str(len(group)), mean, *cells)
    console.print(table)


def _show_verdict(console: Console, verdict: Verdict | None) -> None:
    if verdict is None:
        return
    pairs = {(d.strategy, d.against): d.interval for d in verdict.differences}
    gain = verdict.gain
    is_alone = gain is None or pairs.get((gain.strategy, gain.against)) in (None, gain.interval)
    table = Table(
        "strategy",
        "balanced accuracy, 95 % interval",
        title="On the hold-out alone",
        caption=None
        if is_alone
        else "The answer also counts out-of-fold predictions of the other records.",
    )
    for name, interval in verdict.balanced_accuracy.items():
        table.add_row(escape(name), _interval(interval))
    for difference in verdict.differences:
        table.add_row(
            f"{escape(difference.strategy)} against {escape(difference.against)}",
            _interval(difference.interval, sign=True),
        )
    console.print(table)
    console.print(f"[bold {COLOURS[verdict.decision]}]{escape(verdict.headline)}[/]")
    for sentence in verdict.details:
        console.print(escape(sentence))
    if verdict.look is not None:
        console.print(verdict.look.sentence, highlight=False)


def _interval(interval: Interval, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{interval.estimate:{form}} [{interval.low:{form}}, {interval.high:{form}}]".replace(
        "[", "("
    ).replace("]", ")")

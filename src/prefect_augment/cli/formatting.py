"""Results as tables and lines for people."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_augment.schema import (
    BalancePlan,
    ClassPlan,
    Interval,
    LatentResult,
    PolicyCheck,
    Result,
    RunResult,
    StrategyScore,
    TrainResult,
    Verdict,
)
from prefect_augment.text import duration

# A million of each; S3 Standard, us-east-1, November 2026.
DOLLARS_A_WRITE, DOLLARS_A_READ = 5.0, 0.4
MAX_CLASSES = 30  # rows of a table; the rest is added up
WIDE = 100  # columns of a terminal in which three scores of two estimators have room
COLOURS = {"accept": "green", "reject": "red", "inconclusive": "yellow"}


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: a terminal wraps them, and numbers have no colour of their own."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _named(name: str, text: str) -> str:
    return f"[bold]{name}[/]: {escape(text)}"


def _notes(notes: Iterable[str]) -> Iterator[str]:
    return (f"- {escape(note)}" for note in notes)


def _cost(result: RunResult | TrainResult | LatentResult) -> str:
    return f"{result.seconds:.1f} s, peak memory {result.peak_rss_bytes / 1e6:.0f} MB"


def show_run(console: Console, result: RunResult) -> None:
    """Print a run: classes before and after, strategies, verdict, recipe, where things are."""
    _show_classes(console, result)
    if result.status == "planned":
        _show_estimate(console, result.plan)
        return
    _show_strategies(console, result.strategies)
    _show_verdict(console, result.verdict)
    if result.recipe is not None:
        say(console, _named("Recipe", f"{result.recipe.strategy.name}. {result.recipe.sentence}"))
    if result.approval is not None:
        say(console, escape(result.approval.sentence))
    if result.status == "awaiting_approval":
        waits = f"[bold]Nothing is published yet[/]: proposal {result.proposal} waits for"
        how = "`prefect-augment approve`, with --reject or --amount CLASS=N where wanted."
        say(console, f"{waits} {how}")
    if result.status == "rejected":
        say(console, "[bold]Rejected[/]: nothing was published.")
    if result.version is not None:
        word = "Published" if result.status == "published" else "Nothing new since"
        say(console, f"[bold]{word}[/] version {result.version}: {escape(result.manifest)}")
    say(console, _named("Report", result.report), _cost(result))
    if result.version is not None:
        place = result.manifest.partition("/_manifests/")[0]
        python = f"in Python open_dataset({place!r})"
        say(console, _named("Next", f"prefect-augment inspect {place}, or {python}."))


def show_demo(
    console: Console, results: Mapping[str, RunResult], places: Mapping[str, str], *, seconds: float
) -> None:
    """Print the end of a demo: per part the version, the verdict and where to look."""
    say(console, f"[bold]The demo is done[/], in {seconds:.0f} s:")
    for name, result in results.items():
        verdict = result.verdict
        assert verdict is not None
        word = "published" if result.status == "published" else "there already"
        answer = f"[{COLOURS[verdict.decision]}]{escape(verdict.headline)}[/]"
        say(
            console,
            f"- [bold]{name}[/]: version {result.version} {word}. {answer}",
            f"  Look at it: {escape(result.report)}",
            f"  and with: prefect-augment inspect {escape(places[name])}",
        )


def show_evaluation(console: Console, result: RunResult) -> None:
    """Print the result of ``evaluate``."""
    if n := result.external:
        given = f"{n['given']:,} records given, {n['quarantined']:,} of them unusable"
        say(console, f"{given}; of {n['filtered']:,} filtered {n['passed']:,} pass.")
    _show_strategies(console, result.strategies)
    _show_verdict(console, result.verdict)
    say(console, *_notes(result.notes), _named("Report", result.report))


def show_training(console: Console, result: TrainResult) -> None:
    """Print the trained model, its records and its location."""
    model = result.model
    word = "Nothing new, there was a" if result.status == "unchanged" else "Trained a"
    steps = f"{model.steps:,} steps on " if model.steps else ""
    of = f"{steps}{model.n_training:,} training records of {result.n_records:,}"
    say(
        console,
        f"[bold]{word}[/] model {escape(model.kind)}: {of}.",
        _named("Can sample", ", ".join(model.strata) or "no class"),
        _named("Checkpoint", model.digest),
        _named("Encoder", model.encoder_digest),
        _named("Kept as", f"{model.root}/{model.checkpoint}"),
        *_notes(result.notes),
        _cost(result),
    )


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
    right = f"right about {result.accuracy:.1%} of {result.n_images:,} unchanged images"
    say(
        console,
        f"[bold]{escape((result.note and f'Not checked: {result.note}.') or word)}[/]",
        f"The classifier is {right}.",
        _named("Pictures", result.picture),
    )


def show_latents(console: Console, result: LatentResult) -> None:
    """Print the summary of a use of latents, its model and its location."""
    from prefect_augment.latents.page import latents_sentence

    say(console, f"[bold]{escape(latents_sentence(result.latents))}[/]")
    summary, model = result.latents.summary, result.model
    if result.latents.use == "anomalies":
        _show_flagged(console, summary["counts"])
    if result.latents.use == "reconstructions":
        _show_value(console, summary["parts"].get("validation", summary["parts"]), 0)
    of = f"{model.kind} {model.digest[:12]}, trained on {model.n_training:,} records"
    kept = _named("Kept as", result.uri)
    say(console, _named("Model", of), *_notes(result.notes), kept, _cost(result))


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
    for c in profile.columns:
        n_unique = "" if c.n_unique < 0 else f"{c.n_unique:,}"  # images are not counted
        type_, note = escape(c.arrow_type), escape(c.note)
        table.add_row(escape(c.name), type_, c.kind, f"{c.n_null:,}", n_unique, note)
    console.print(table)
    if not profile.is_valid:
        first, *others = profile.notes
        say(console, f"[bold red]cannot be used:[/] {escape(first)}", *_notes(others))
        return
    total = sum(profile.class_counts.values())
    classes = Table(f"class ({escape(profile.label)})", "records", "share")
    for name, n in profile.class_counts.items():
        classes.add_row(escape(name), f"{n:,}", f"{n / total:.1%}")
    console.print(classes)
    ratio = f"Imbalance ratio {profile.imbalance_ratio:.1f}"
    reasons = "; ".join(f"{n:,} × {reason}" for reason, n in profile.quarantine.items())
    why = escape(f": {reasons}") if reasons else ""
    say(console, f"{ratio}, quarantined {profile.n_quarantined:,}{why}.", *_notes(profile.notes))


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
        status = f"[{colours[check.status]}]{check.status:<8}[/]"
        say(console, f"  {status} {escape(check.name)}: {escape(check.finding)}")
        if check.advice:
            say(console, f"           {escape(check.advice)}")
    n = {status: sum(c.status == status for c in checks) for status in colours}
    say(console, ", ".join(f"{status}: {count}" for status, count in n.items()))


def _show_value(console: Console, value: Any, depth: int) -> None:
    indent = "  " * depth
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping | list) and item:
                console.print(f"{indent}[bold]{escape(str(name))}[/]:")
                _show_value(console, item, depth + 1)
            else:
                text = "none" if item in ({}, [], None, "") else str(item)
                say(console, f"{indent}{_named(escape(str(name)), text)}")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                _show_value(console, item, depth)
                console.print()
            else:
                say(console, f"{indent}- {escape(str(item))}")
    else:
        console.print(f"{indent}{escape(str(value))}")


def _show_classes(console: Console, result: RunResult) -> None:
    table = Table("class", title="Classes (training records)")
    heads = ("before", "target", "synthetic", "classic", "after", "weighted")
    for head in heads if result.recipe is not None else heads[:-1]:
        table.add_column(head, justify="right")
    classes = result.plan.classes
    largest = sorted(classes, key=lambda c: (not c.compared, -c.n_real))
    added_up = [] if len(classes) <= MAX_CLASSES else largest[MAX_CLASSES - 1 :]
    for entry in classes:
        if entry not in added_up:
            name = escape(entry.name) + ("" if entry.compared else " (not compared)")
            table.add_row(name, *(f"{n:,.0f}" for n in _class_counts(entry, result)))
    if added_up:
        sums = map(sum, zip(*(_class_counts(entry, result) for entry in added_up), strict=True))
        table.add_row(f"{len(added_up):,} more classes", *(f"{n:,.0f}" for n in sums))
    console.print(table)
    for warning in result.plan.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")


def _class_counts(entry: ClassPlan, result: RunResult) -> list[float]:
    """A class's records before, its target, synthetic, classic, after, and with a recipe what they count."""
    recipe, published = result.recipe, result.counts.get("train", {})
    synthetic, classic, weighted = entry.n_synthetic, entry.n_classic, []
    if recipe is not None:
        synthetic = recipe.synthetic.get(entry.name, 0)
        classic = recipe.classic.get(entry.name, 0)
        n = entry.n_real + recipe.counted(entry.name)
        weighted = [n * recipe.class_weight.get(entry.name, 1.0)]
    after = entry.n_real + synthetic + classic
    if published and not entry.by:
        after = sum(published.get(entry.label, {}).values())
    return [entry.n_real, entry.target, synthetic, classic, after, *weighted]


def _show_estimate(console: Console, plan: BalancePlan) -> None:
    if plan.soft_labels:
        console.print(
            "Synthetic records have soft labels: each gets a row for every likely class. More are drawn than the "
            "targets say, and weights bring the balance."
        )
    needs = plan.estimate
    dollars = (needs.writes * DOLLARS_A_WRITE + needs.reads * DOLLARS_A_READ) / 1e6
    say(
        console,
        f"Estimate: {duration(needs.seconds)} of one core, {needs.output_bytes / 1e6:,.1f} MB written, "
        f"{needs.memory_bytes / 1e6:,.0f} MB of memory. In an object store: {needs.writes:,} requests that write or "
        f"list, {needs.reads:,} that read, ${dollars:.4f} at S3's list prices. Nothing was trained or published.",
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
    caption = (
        None if is_alone else "The answer also counts out-of-fold predictions of the other records."
    )
    table = Table("strategy", "balanced accuracy, 95 % interval", caption=caption)
    table.title = "On the hold-out alone"
    for name, interval in verdict.balanced_accuracy.items():
        table.add_row(escape(name), _interval(interval))
    for (strategy, against), interval in pairs.items():
        compared = f"{escape(strategy)} against {escape(against)}"
        table.add_row(compared, _interval(interval, sign=True))
    if table.row_count:
        console.print(table)
    console.print(f"[bold {COLOURS[verdict.decision]}]{escape(verdict.headline)}[/]")
    for sentence in verdict.details:
        console.print(escape(sentence))
    if verdict.look is not None:
        console.print(verdict.look.sentence, highlight=False)


def _interval(interval: Interval, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{interval.estimate:{form}} ({interval.low:{form}}, {interval.high:{form}})"

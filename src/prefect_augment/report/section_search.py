"""The report's section on the search: what was tried in which round, and who was dropped and why."""

from __future__ import annotations

from markupsafe import Markup, escape

from prefect_augment.schema.base import Strategy
from prefect_augment.schema.experiment import Rung, SearchResult, Trial
from prefect_augment.text import count, duration, number, percent, visible

__all__ = ["section", "setting_text"]

MAX_TRIALS = 60  # of a rung; report.json has all

_RUNGS = {
    "models": "Generative models against one another",
    "pilots": "Pilots of every setting",
    "in full": "The best strategies in full",
    "all seeds": "The last ones with all seeds",
}


def section(info: SearchResult | None) -> Markup:
    """Return the section; nothing where no search was made.

    Parameters
    ----------
    info : SearchResult or None
        Every round of the search.

    Returns
    -------
    Markup
        Every string in it is escaped.
    """
    if info is None or not info.rungs:
        return Markup("")
    parts = [
        Markup('<section id="search">\n  <h2>The search on validation records</h2>\n'),
        Markup(
            '  <p class="lead">{} settings were tried, at most {} of a strategy, the same number for baselines and '
            "models. Each round keeps the best and trains them harder; the hold-out saw none of it.</p>\n"
        ).format(count(info.n_trials), info.n_settings),
        *(_rung(rung) for rung in info.rungs),
        _skipped(info),
        Markup("</section>\n"),
    ]
    return Markup("").join(parts)


def setting_text(strategy: Strategy) -> str:
    """Say what is set about a strategy; ``"–"`` where nothing is.

    Examples
    --------
    >>> setting_text(Strategy(name="trees", family="model", amount=0.5, per_real=2.0))
    'amount 0.5, 2 per real'
    """
    found = []
    if strategy.family not in ("as_is", "threshold", "external"):
        found.append(f"amount {strategy.amount:g}")
    if strategy.per_real:
        found.append(f"{strategy.per_real:g} per real")
    if strategy.synthetic_weight != 1:
        found.append(f"synthetic counts {strategy.synthetic_weight:g}")
    if strategy.has_model and strategy.real_only_finish < 1:
        found.append(f"synthetic in the first {strategy.real_only_finish:.0%}")
    if strategy.classic_prob:
        found.append(f"p {strategy.classic_prob:g}")
        if strategy.classic_strength != 1:
            found.append(f"{strategy.classic_strength:g} times as strong")
    if strategy.tune_threshold:
        found.append("threshold tuned")
    return ", ".join(found) or "–"


def _rung(rung: Rung) -> Markup:
    effort = "" if rung.effort == 1 else f", {percent(rung.effort)} % of an estimator's steps"
    seeds = f"{rung.n_seeds} seed{'s' if rung.n_seeds != 1 else ''}"
    trials = sorted(rung.trials, key=lambda t: -t.score)
    timed = any(trial.seconds for trial in trials)
    rows = Markup("\n").join(_row(trial, timed=timed) for trial in trials[:MAX_TRIALS])
    more = len(trials) - MAX_TRIALS
    return Markup(
        "  <h3>{title}</h3>\n"
        "  <p>{n} tried ({seeds}{effort}), {kept} kept.{note}{more}</p>\n"
        '<div class="scroll" role="region" tabindex="0" aria-label="{title}">\n'
        '  <table><thead><tr><th>Strategy</th><th>Setting</th><th class="n">Balanced accuracy, %</th>'
        '<th class="n">Spread</th>{time}<th>What became of it</th></tr></thead><tbody>\n'
        "{rows}\n  </tbody></table>\n</div>\n"
    ).format(
        title=_RUNGS.get(rung.name, rung.name),
        n=count(len(trials)),
        seeds=seeds,
        effort=effort,
        kept=count(rung.n_kept),
        note=f" {rung.note}" if rung.note else "",
        more=f" The {count(more)} with the lowest scores are in report.json." if more > 0 else "",
        time=Markup('<th class="n">Time</th>') if timed else "",
        rows=rows,
    )


def _row(trial: Trial, *, timed: bool) -> Markup:
    spread = "–" if trial.spread is None else f"± {percent(trial.spread)} ({trial.n_scores})"
    model = f" ({trial.model})" if trial.model and trial.model not in trial.strategy.name else ""
    return Markup(
        '  <tr><th scope="row"><bdi class="name">{name}</bdi></th><td>{setting}</td>'
        '<td class="n">{score}</td><td class="n nowrap">{spread}</td>{time}<td class="wide">{became}</td></tr>'
    ).format(
        name=visible(trial.strategy.name) + model,
        setting=setting_text(trial.strategy),
        score=percent(trial.score),
        spread=spread,
        time=Markup('<td class="n">{}</td>').format(_time(trial.seconds)) if timed else "",
        became=Markup("<strong>kept</strong>") if trial.kept else f"dropped: {trial.reason}",
    )


def _time(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds < 10 else duration(seconds)


def _skipped(info: SearchResult) -> Markup:
    if not info.skipped:
        return Markup("")
    items = Markup("").join(
        Markup("<li><code>{}</code>: {}.</li>").format(escape(kind), reason)
        for kind, reason in sorted(info.skipped.items())
    )
    return Markup("  <h3>Generative models that were passed over</h3>\n  <ul>{}</ul>\n").format(
        items
    )

"""What is published, and what it truly brings: draws of real tables, with the other records as the truth.

`draws`: some hundred records of a large table go through plan, model and comparison as in a run; what validation
chose, the best way without synthetic records and what is published are then scored on up to 8,000 records that
the run has never seen. Printed are, for `publish.require` proven and preferred,

- of the mean true gain of the best strategy with synthetic records over the best without, the share that is
  published (60 % is the goal of the default),
- how often `proven` is false, and how often what is published is truly more than a point worse.

`records`: records of a rare class are given to `evaluate` as if another tool had made them: fresh real ones, noise
(records of the other class under the rare class's name), and copies of the source.

    python benchmarks/known_truth.py [draws|records] [--repeats N] [--jobs N] [--quick] [--keep FILE] [--json FILE]

It takes about an hour. With --keep finished draws are put into a file of one JSON a line and not made again: use
another file where the code has changed.
"""

import argparse
import json
import logging
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefect_augment.evaluation.metrics.predictions import StrategyPredictions
from prefect_augment.evaluation.verdict.out_of_fold import pooled
from prefect_augment.evaluation.verdict.selection import choose_strategy
from prefect_augment.experiment.evaluator import kept_synthetic
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.experiment.score import evidence
from prefect_augment.flows._compare import Comparison, compare, synthesize
from prefect_augment.flows.evaluate import evaluate
from prefect_augment.params import Destination, RunParams, Source
from prefect_augment.schema import Choice, Experiment, StrategyScore
from prefect_augment.tasks._runtime import open_root
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.plan import plan_balance

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tabular"
MOST_TRUTH = 8000
LOSS = 0.01


class Set(NamedTuple):
    """A large table: its label, and how many records are drawn as somebody's data."""

    label: str
    n_drawn: int


SETS = {
    "adult_income": Set("income", 800),
    "mammography": Set("calcification", 1200),
    "predictive_maintenance": Set("machine_failure", 1200),
}
N_SOURCE, N_FRESH = 1500, 3000  # of evaluated records


def _split(name: str, n: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """Records drawn from a table, and the others."""
    table = pq.read_table(DATA / f"{name}.parquet")
    order = np.random.default_rng(seed).permutation(table.num_rows)
    return table.take(np.sort(order[:n])), table.take(order[n:])


def true_gain(name: str, seed: int) -> dict[str, Any]:
    """One draw: the answer, and the true balanced accuracy of what the answer is about."""
    label, n = SETS[name]
    drawn, truth = _split(name, n, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/drawn.parquet"
        pq.write_table(drawn, path)
        params = RunParams(seed=seed)
        source, destination = Source(uri=path, label=label), Destination(uri=f"{folder}/out")
        dataset = ingest_dataset.fn(source, destination, seed=seed)
        plan = plan_balance.fn(dataset, params, searched=True)
        asked = Experiment(dataset=dataset, plan=plan, params=params)
        synthesis = synthesize(asked, workers=1)
        compared = compare(synthesis, workers=1)
        verdict, choice = compared.verdict, choose_strategy(compared.scores)
        asked_for = {
            "baseline": choice.baseline,
            "model": choice.model or choice.baseline,
            "as_is": choice.as_is,
        }
        known = {
            s.name: _balanced(synthesis.experiment, s, compared.scores, truth.slice(0, MOST_TRUTH))
            for s in asked_for.values()
        }
        return {
            "set": name,
            "seed": seed,
            "synthetic": verdict.synthetic,
            "answer": verdict.answers[-1],
            "published": verdict.published,
            "chosen": choice.chosen.name,
            "has_model": choice.chosen.has_model,
            "estimated": _estimated(synthesis.experiment, compared, choice),
            **{kind: known[s.name] for kind, s in asked_for.items()},
        }


def _estimated(experiment: Experiment, compared: Comparison, choice: Choice) -> float:
    """The gain of the best strategy with synthetic records over the best without, as the verdict has it."""
    if choice.model is None:
        return 0.0
    pair = choice.model.name, choice.baseline.name
    of_pair = [d.interval for d in compared.verdict.differences if (d.strategy, d.against) == pair]
    store = open_root(experiment.dataset)
    of_search = evidence(open_evaluator(store, experiment), compared.scores, store)
    if of_search is not None and set(pair) <= of_search.predictions.keys():
        return pooled([*of_pair, of_search.difference(*pair)], of_search.measure).estimate
    return of_pair[0].estimate


def _balanced(
    experiment: Experiment, strategy: Any, scores: tuple[StrategyScore, ...], truth: pa.Table
) -> float:
    """Balanced accuracy on records that the run has not seen, of estimators trained as users will."""
    store = open_root(experiment.dataset)
    evaluator = open_evaluator(store, experiment)
    data, label = evaluator.records, evaluator.info.label
    X = evaluator.encode(truth)
    y = np.searchsorted(data.classes, np.array([str(v) for v in truth[label].to_pylist()]))
    synthetic = kept_synthetic(evaluator, store) if strategy.has_model else None
    rows = np.arange(len(data.y))
    proba = {
        name: p[None]
        for name, p in evaluator.predictions(
            strategy, rows, X, synthetic=synthetic, seed=1000 * experiment.params.seed
        )
    }
    tuned = next((s.thresholds for s in scores if s.strategy == strategy), {})
    multipliers = {
        name: np.array([[of.get(c, 1.0) for c in data.classes]]) for name, of in tuned.items()
    }
    hits = StrategyPredictions(strategy, proba, multipliers).hits(y)[0]
    return float(np.mean([hits[y == k].mean() for k in np.unique(y)]))


def answer_of(name: str, seed: int, kind: str, n_source: int, n_given: int) -> dict[str, Any]:
    """What `evaluate` says of records of the rare class that are fresh and real, noise, or copies."""
    label = SETS[name].label
    drawn, others = _split(name, n_source, seed)
    rare = _rare(drawn[label])
    is_rare = np.array(others[label].to_pylist()) == rare
    if kind == "copies":
        own = np.flatnonzero(np.array(drawn[label].to_pylist()) == rare)
        given = drawn.take(np.random.default_rng(seed).choice(own, n_given))
    else:
        given = others.filter(pa.array(is_rare if kind == "fresh" else ~is_rare)).slice(0, n_given)
        column = pa.array([rare] * given.num_rows, drawn.schema.field(label).type)
        given = given.set_column(given.column_names.index(label), label, column)
    with tempfile.TemporaryDirectory() as folder:
        for title, table in (("source", drawn), ("given", given)):
            pq.write_table(table, f"{folder}/{title}.parquet")
        result = evaluate.fn(
            Source(uri=f"{folder}/source.parquet", label=label),
            f"{folder}/given.parquet",
            Destination(uri=f"{folder}/out"),
        )
    assert result.verdict is not None
    return {
        "set": name,
        "kind": kind,
        "seed": seed,
        "n_source": n_source,
        "n_given": given.num_rows,
        "synthetic": result.verdict.synthetic,
        "answer": result.verdict.answers[1],
        "leaks": [line[:5] for line in result.verdict.leaks],
        "privacy": result.privacy,
    }


def _rare(column: pa.ChunkedArray) -> Any:
    return Counter(column.to_pylist()).most_common()[-1][0]


def summary_of_draws(found: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of the goals, by rule."""
    gain = np.array([d["model"] - d["baseline"] for d in found])
    proven = np.array([d["synthetic"] == "proven" for d in found])
    preferred = proven | np.array([d["synthetic"] == "preferred" for d in found])
    chosen = np.array([d["has_model"] for d in found])
    summary = {"draws": len(found), "mean true gain, points": 100 * gain.mean()}
    summary["truly better"] = float((gain > 0).mean())
    published = np.array([d[_kind_published(d)] for d in found])
    over = {
        k: np.array([d[k] for d in found]) - [d["as_is"] for d in found]
        for k in ("baseline", "model")
    }
    best = np.maximum(over["baseline"], over["model"])
    summary["published over as is, points"] = 100 * float(
        (published - [d["as_is"] for d in found]).mean()
    )
    summary["the truly better of both over as is, points"] = 100 * float(best.mean())
    estimated = np.array([d["estimated"] for d in found])
    if len(found) > 2:
        summary["correlation of estimate and truth"] = float(np.corrcoef(estimated, gain)[0, 1])
    rules = {"proven": proven & chosen, "preferred": preferred & chosen}
    rules |= {"validation's choice": chosen, "any gain above zero": estimated > 0}
    for title, out in rules.items():
        summary[f"{title}: published"] = float(out.mean())
        summary[f"{title}: share of the mean gain"] = float((gain * out).sum() / gain.sum())
        summary[f"{title}: false"] = float((out & (gain <= 0)).mean())
        summary[f"{title}: true loss above a point"] = float((out & (gain < -LOSS)).mean())
    return summary


def _kind_published(draw: dict[str, Any]) -> str:
    if draw["published"] == "as is":
        return "as_is"
    published_model = draw["has_model"] and draw["published"] == draw["chosen"]
    return "model" if published_model else "baseline"


def main() -> None:
    """Print a line per draw, then the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("draws", "records"), default="draws")
    parser.add_argument("--repeats", type=int, default=50, help="per set")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one draw of one set")
    parser.add_argument("--keep", type=Path, help="of finished draws, one JSON a line")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sets, seeds = (["mammography"], [0]) if args.quick else (list(SETS), range(args.repeats))
    asked = [(name, seed) for seed in seeds for name in sets]
    if args.what == "draws":
        jobs = [(true_gain, draw) for draw in asked]
    else:
        kinds = ("fresh", "noise", "copies")
        jobs = [(answer_of, (*draw, kind, N_SOURCE, N_FRESH)) for draw in asked for kind in kinds]
    kept = args.keep.read_text().splitlines() if args.keep and args.keep.exists() else []
    found = [json.loads(line) for line in kept]
    known = {(d["set"], d["seed"], *([d["kind"]] if "kind" in d else [])) for d in found}
    jobs = [(make, of) for make, of in jobs if of[:3] not in known]
    with ProcessPoolExecutor(args.jobs) as pool:
        for job in [pool.submit(make, *of) for make, of in jobs]:
            found.append(job.result())
            print(json.dumps(found[-1]), flush=True)
            if args.keep:
                with args.keep.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
    if args.what == "draws":
        for name in [*sets, ""]:
            of = [d for d in found if d["set"] == name or not name]
            print(name or "all", json.dumps(summary_of_draws(of), indent=1))
    else:
        for name, kind in dict.fromkeys((d["set"], d["kind"]) for d in found):
            of = [d for d in found if (d["set"], d["kind"]) == (name, kind)]
            print(
                name,
                kind,
                dict(Counter(d["synthetic"] for d in of)),
                "leaks named:",
                sum("Leak:" in d["leaks"] for d in of),
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

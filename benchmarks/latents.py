"""What embeddings hold, and what strangeness finds: `python benchmarks/latents.py [--quick] [--sets …] [--json FILE]`.

adult_income and hypothyroid are split into training, validation and hold-out by the seed. Models learn from
training records; every record is embedded, without its class, by autoencoder and VAE, and by PCA of the same size on
the same columns (numbers scaled, nulls imputed by the median with a flag, categories one-hot).
Estimators (15 nearest neighbours, logistic regression, k-means with as many clusters as classes) are
fitted on the training vectors, and scored on the hold-out; whether vectors are scaled first is chosen on
validation for each of them alike. At most 10,000 records are used; classes of fewer than 10 are left out.

On mammography, models learn the majority class alone and all of the hold-out is scored; beside them
IsolationForest on the same rows. Means over the seeds, 95 % t intervals.

The data are read from ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _latent_scores import MEASURES, score_vectors
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.genmodels.base import TableData
from prefect_augment.params import Budget, ModelParams
from prefect_augment.synthesis.model_store import table_spec
from prefect_augment.synthesis.train import fit_model

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tabular"
LABELS = {"adult_income": "income", "hypothyroid": "diagnosis", "mammography": "calcification"}
SETS = ("hypothyroid", "mammography", "adult_income")
KINDS = ("autoencoder", "vae")
MIN_CLASS = 10
MAX_RECORDS = 10_000  # of a data set, chosen by the seed
QUICK_RECORDS = 2000


@dataclass(frozen=True)
class Parts:
    """Encoded records of a data set, split by a seed."""

    encoder: TableEncoder
    X: NDArray[np.float64]
    y: NDArray[np.int64]
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, seed: int, most: int) -> Parts:
        """Read a data set and split it: a fifth is the hold-out, a fifth of the rest validation."""
        path = DATA / f"{name}.parquet"
        if not path.is_file():
            raise SystemExit(
                f"no data at {path}; this benchmark reads what lies beside the repository."
            )
        table, label = pq.read_table(path), LABELS[name]
        counts = {c["values"]: c["counts"] for c in pc.value_counts(table[label]).to_pylist()}
        kept = [value for value, n in counts.items() if n >= MIN_CLASS]
        table = table.filter(pc.is_in(table[label], pa.array(kept, table[label].type)))
        if most and table.num_rows > most:
            rng = np.random.default_rng(seed)
            table = table.take(pa.array(np.sort(rng.permutation(table.num_rows)[:most])))
        names = np.array(table_strata(table, label=label))
        rows = np.arange(table.num_rows)
        train, test = train_test_split(rows, test_size=0.2, stratify=names, random_state=seed)
        training, validation = train_test_split(
            train, test_size=0.2, stratify=names[train], random_state=seed
        )
        learnt = table.take(pa.array(training))
        info = describe_columns(learnt, label=label)
        encoder = TableEncoder.fit(learnt, columns=info, label=label)
        y = np.array([encoder.strata.index(n) for n in names])
        return cls(encoder, encoder.encode(table), y, training, validation, test)

    def train(self, kind: str, rows: NDArray[np.int64], seed: int, budget: Budget) -> Any:
        """Return a model fitted on some records; with one class where they are of one."""
        params: ModelParams = TypeAdapter(ModelParams).validate_python({"kind": kind})
        seen, y = np.unique(self.y[rows], return_inverse=True)
        names = tuple(self.encoder.strata[k] for k in seen)
        spec = table_spec(self.encoder, y, names)
        return fit_model(TableData(self.X[rows], y), spec, params, seed, budget=budget)

    def plain(self) -> NDArray[np.float64]:
        """Return the columns as scikit-learn's recipes have them, fitted on the training records."""
        is_category, learnt = self.encoder.is_category, self.X[self.training]
        blocks = []
        if (~is_category).any():
            imputer = SimpleImputer(strategy="median", add_indicator=True)
            scaler = StandardScaler().fit(imputer.fit_transform(learnt[:, ~is_category]))
            blocks.append(scaler.transform(imputer.transform(self.X[:, ~is_category])))
        if is_category.any():
            codes = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
            codes.fit(np.nan_to_num(learnt[:, is_category], nan=-1))
            blocks.append(codes.transform(np.nan_to_num(self.X[:, is_category], nan=-1)))
        return np.hstack(blocks)


# --- embeddings -------------------------------------------------------------------------------


def embeddings(name: str, seed: int, most: int, budget: Budget) -> dict[str, dict[str, float]]:
    """Return measures by representation: each model, PCA of its size, and all columns."""
    parts = Parts.of(name, seed, most)
    plain = parts.plain()
    found = {"all columns": score_vectors(plain, parts, seed)}
    for kind in KINDS:
        started = time.process_time()
        model = parts.train(kind, parts.training, seed, budget)
        seconds = time.process_time() - started
        Z = model.embed(parts.X).astype(np.float64)
        found[kind] = {
            **score_vectors(Z, parts, seed),
            "fit CPU s": seconds,
            "size": model.n_latent,
        }
        peer = f"PCA {model.n_latent}"
        if peer not in found:
            pca = PCA(min(model.n_latent, plain.shape[1]), random_state=seed).fit(
                plain[parts.training]
            )
            found[peer] = score_vectors(pca.transform(plain), parts, seed)
    return found


# --- anomalies --------------------------------------------------------------------------------


def strange(seed: int, most: int, budget: Budget) -> dict[str, float]:
    """Return the AUROC of the rare class on the hold-out, by scorer."""
    parts = Parts.of("mammography", seed, most)
    majority = int(np.bincount(parts.y).argmax())
    normal = parts.training[parts.y[parts.training] == majority]
    truth = parts.y[parts.test] != majority
    plain = parts.plain()
    forest = IsolationForest(random_state=seed).fit(plain[normal])
    found = {"IsolationForest": roc_auc_score(truth, -forest.score_samples(plain[parts.test]))}
    for kind in KINDS:
        model = parts.train(kind, normal, seed, budget)
        found[kind] = roc_auc_score(truth, model.anomaly_scores(parts.X[parts.test]))
    return {name: float(value) for name, value in found.items()}


# --- printing ---------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """Write a mean with its 95 % t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def row(metric: str, ours: list[float], peer: list[float], peer_name: str) -> dict[str, Any]:
    """Return one line of the JSON; the interval is of the difference over the seeds."""
    a, b = float(np.mean(ours)), float(np.mean(peer))
    differences = [x - y for x, y in zip(ours, peer, strict=True)]
    return {
        "metric": metric,
        "unit": "share",
        "ours": a,
        "peer": b,
        "peer_name": peer_name,
        "ratio": a / b if b else None,
        "difference": interval(differences),
        "goal": f"at least {peer_name}",
        "met": a >= b,
    }


def compare_embeddings(
    name: str, seeds: Sequence[int], most: int, budget: Budget
) -> list[dict[str, Any]]:
    """Print a data set's table; return its lines of the JSON."""
    found = [embeddings(name, seed, most, budget) for seed in seeds]
    print(f"\n{name}, seeds {', '.join(map(str, seeds))}")
    print(f"{'':14}" + "".join(f"{measure:>28}" for measure in MEASURES))
    for representation in found[0]:
        values = {m: [f[representation][m] for f in found] for m in MEASURES}
        print(f"{representation:14}" + "".join(f"{interval(values[m]):>28}" for m in MEASURES))
    rows = []
    for kind in KINDS:
        seconds = np.mean([f[kind]["fit CPU s"] for f in found])
        print(f"{kind}: {seconds:.1f} CPU s to fit")
        peer = f"PCA {found[0][kind]['size']:.0f}"
        for measure in MEASURES:
            ours, theirs = ([f[who][measure] for f in found] for who in (kind, peer))
            rows.append(row(f"{name}: {measure}, {kind}", ours, theirs, peer))
            print(f"  {measure} less {peer}'s: {rows[-1]['difference']}")
    return rows


def compare_anomalies(seeds: Sequence[int], most: int, budget: Budget) -> list[dict[str, Any]]:
    """Print the table of mammography; return its lines of the JSON."""
    scored = [strange(seed, most, budget) for seed in seeds]
    print("\nmammography: AUROC of the rare class, the other one learnt")
    for who in scored[0]:
        print(f"{who:18} {interval([s[who] for s in scored])}")
    rows = []
    for kind in KINDS:
        ours, theirs = ([s[who] for s in scored] for who in (kind, "IsolationForest"))
        rows.append(row(f"mammography: anomaly AUROC, {kind}", ours, theirs, "IsolationForest"))
        print(f"  {kind} less IsolationForest: {rows[-1]['difference']}")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, fewer records and steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which of them")
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    most = QUICK_RECORDS if args.quick else MAX_RECORDS
    budget = Budget(steps=300) if args.quick else Budget()
    rows: list[dict[str, Any]] = []
    for name in args.sets:
        if name == "mammography":
            rows += compare_anomalies(seeds, most, budget)
        else:
            rows += compare_embeddings(name, seeds, most, budget)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""What Prefect costs on top of the work: `python benchmarks/overhead.py [--quick] [--json FILE]`.

A real Prefect server runs on loopback with an empty database. The peer is the same work called as
plain functions: ``rebalance.fn(…)`` in an equal process that knows of no server. Measured:

- wall and CPU seconds of whole processes, medians of interleaved repeats, each to a fresh
  destination, strategies compared one after the other in both: so that nothing but Prefect differs;
- task runs of a dataset, of one with eight times the records, and of one with many more shards;
- by how much a run makes the server's database grow (sqlite with its log written back), without
  pictures and with them.

--quick: the built-in table with a short search only; else also the full search, and the built-in
images for the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

MIB = 2**20
PLAIN = "the same work as plain functions"
# One estimator, one seed: seconds of comparing, and as many tasks and artifacts as any run has.
QUICK = {"estimators": ["logistic"], "n_seeds": 1, "n_bootstrap": 200, "on_no_gain": "publish"}
SHORT = {"evaluation": QUICK}
NO_MODEL = {"model": {"kind": "none"}, **SHORT}


# --- the child: one run in a process of its own ---


def child(given: dict[str, Any]) -> None:
    """Run ``rebalance`` as a flow or as a plain function, and print what its process used."""
    from prefect_augment.flows.rebalance import rebalance

    made = rebalance.validate_parameters(given["parameters"])
    result = rebalance(**made) if given["as_flow"] else rebalance.fn(**made)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    print(json.dumps({"status": result.status, "cpu_seconds": cpu}))


class Runs:
    """Runs in equal processes, with a server or without."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server, self.n = folder, server, 0

    def __call__(
        self, source: Path, label: str, *, as_flow: bool, **sections: Any
    ) -> dict[str, Any]:
        """Run once to a fresh destination; seconds are the whole process's, start to exit."""
        self.n += 1
        parameters = {
            "source": {"uri": str(source), "label": label},
            "destination": {"uri": str(self.folder / f"out-{self.n}")},
            "compute": {"workers": 1},
            **sections,
        }
        words = [sys.executable, __file__, "--child"]
        given = json.dumps({"as_flow": as_flow, "parameters": parameters})
        started = time.perf_counter()
        done = subprocess.run(
            [*words, given],
            env=self.server.client_env if as_flow else self.server.plain_env,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"a run ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return {**json.loads(done.stdout.splitlines()[-1]), "seconds": seconds}


# --- the server ---


class Server:
    """A Prefect server, its database, and the environments of those who use it or do not."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.database = home / "prefect.db"
        common = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        # The plain side has a home of its own too, so that nothing is shared but the machine.
        self.plain_env = common | {"PREFECT_HOME": str(home / "plain")}
        self.client_env = common | {"PREFECT_API_URL": self.api}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server until the block ends."""
        words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.database.parent / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env=self.client_env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait(process)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(f"{self.api}/health", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise SystemExit(f"the server did not start; see {self.database.parent / 'server.log'}")

    def n_task_runs(self) -> int:
        """Count the task runs of the newest flow run, once the server has heard of its end."""
        body = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        newest = self._post("flow_runs/filter", body)[0]["id"]
        chosen = {"flow_runs": {"id": {"any_": [newest]}}}
        self.n_bytes()  # task runs reach the database by events, a moment after the run's end
        return int(self._post("task_runs/count", chosen))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.api}/{path}", json=body, trust_env=False, timeout=30)
        return answer.raise_for_status().json()

    def n_bytes(self) -> int:
        """Bytes that the database uses, when they no longer change: logs and events come in late."""
        last, until = -1, time.monotonic() + 60
        while time.monotonic() < until:
            now = self._used()
            if now == last:
                return now
            last = now
            time.sleep(4.0)  # longer than Prefect's services wait before they write what they have
        return last

    def _used(self) -> int:
        with closing(sqlite3.connect(self.database, timeout=30)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            pages, free, size = (
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def largest(self) -> str:
        """Name what fills the database most, where sqlite can say it."""
        query = "SELECT name, sum(pgsize) AS n FROM dbstat GROUP BY name ORDER BY n DESC LIMIT 5"
        with closing(sqlite3.connect(self.database, timeout=30)) as db:
            try:
                rows = db.execute(query).fetchall()
            except sqlite3.OperationalError:  # built without dbstat
                return "unknown"
        return ", ".join(f"{name} {n / MIB:.2f}" for name, n in rows)


# --- what is measured ---


def overhead(
    name: str, runs: Runs, source: Path, label: str, n: int, **sections: Any
) -> tuple[list[dict[str, Any]], float]:
    """Compare n flows with n plain calls; also return what a flow added to the database, in MiB."""
    flows: list[dict[str, Any]] = []
    plains: list[dict[str, Any]] = []
    before = runs.server.n_bytes()
    for i in range(n):
        for as_flow in (True, False) if i % 2 else (False, True):  # neither is always the first
            (flows if as_flow else plains).append(runs(source, label, as_flow=as_flow, **sections))
    grown = (runs.server.n_bytes() - before) / n / MIB
    rows = []
    for key, what in (("seconds", "wall"), ("cpu_seconds", "CPU")):
        ours, peer = (statistics.median(r[key] for r in rs) for rs in (flows, plains))
        goal = "under 5 % or 5 s more, whichever is larger"
        met = ours - peer < max(0.05 * peer, 5.0)
        rows.append(row(f"{name}: {what} time of the flow", "s", ours, peer, PLAIN, goal, met))
        spread = " ".join(f"{r[key]:.2f}" for r in flows), " ".join(f"{r[key]:.2f}" for r in plains)
        print(f"{name}, {what} seconds: flow {spread[0]}; plain {spread[1]}")
    return rows, grown


def growth(name: str, mib: float, limit: float) -> dict[str, Any]:
    """Report what a run adds to the database."""
    goal = f"under {limit:g} MiB"
    return row(
        f"{name}: growth of the API's database", "MiB", mib, limit, "limit", goal, mib < limit
    )


def task_runs(runs: Runs, folder: Path) -> list[dict[str, Any]]:
    """Count task runs as records and shards become more."""

    def count(records: int, shards: int) -> int:
        table = pq.read_table(folder / "table.parquet")
        while table.num_rows < records:
            table = pa.concat_tables([table, table])
        part = folder / f"table-{records}.parquet"
        pq.write_table(table.slice(0, records), part)
        publish = {"shard_records": -(-records // shards)}
        runs(part, "digit", as_flow=True, publish=publish, **NO_MODEL)
        return runs.server.n_task_runs()

    base, records, shards = count(600, 1), count(4800, 1), count(600, 12)
    return [
        row("task runs, 8 x the records", "runs", records, base, "600 records", "as many", records == base),
        row("task runs, 12 x the shards", "runs", shards, base, "1 shard", "at most 1 more a shard",
            shards <= base + 12),
    ]  # fmt: skip


def row(
    metric: str, unit: str, ours: float, peer: float, peer_name: str, goal: str, met: bool
) -> dict[str, Any]:
    """Return one figure in the form that all benchmarks write."""
    return {
        "metric": metric,
        "unit": unit,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 4),
        "goal": goal,
        "met": met,
    }


def main() -> None:
    """Measure, print a table, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the built-in table, twice")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return

    from prefect_augment.examples import example_images, example_table

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(example_table(0), folder / "table.parquet")
        server = Server(folder)
        runs = Runs(folder, server)
        table = folder / "table.parquet"
        with server.running():
            plain = {"report": {"pictures": "none"}}
            quick = {"model": {"kind": "trees"}, **SHORT}
            n = 2 if args.quick else 3
            rows, mib = overhead("table, short", runs, table, "digit", n, **quick, **plain)
            rows.append(growth("without pictures", mib, 1.0))
            if not args.quick:
                rows += overhead("table, full search", runs, table, "digit", 2)[0]
                images = example_images(str(folder / "images"))
                source = Path(images.uri)
                sections = {"model": {"kind": "diffusion"}, "budget": {"steps": 20}, **SHORT}
                before = server.n_bytes()
                runs(source, "label", as_flow=True, **sections)
                mib = (server.n_bytes() - before) / MIB
                rows.append(growth("with pictures", mib, 3.0))
                rows += task_runs(runs, folder)
            print(f"largest parts of the database, MiB: {server.largest()}")
    print(f"\n{'metric':42} {'unit':>5} {'ours':>8} {'peer':>8} {'ratio':>6}  met  goal (peer)")
    for r in rows:
        met = "yes" if r["met"] else "NO"
        print(
            f"{r['metric']:42} {r['unit']:>5} {r['ours']:8.2f} {r['peer']:8.2f} {r['ratio']:6.2f}  "
            f"{met:3}  {r['goal']} ({r['peer_name']})"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

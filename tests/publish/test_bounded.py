"""Memory does not grow with the records: what Arrow holds at most, by its own count."""

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support import releases
from support.steps import publish_arguments

from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import Store, read_manifest

MOST_MIB = 64


def most_mib(tmp_path: Path, action: str, given: object) -> int:
    """Run this in a process of its own; return the MiB that Arrow held at most."""
    script = textwrap.dedent(
        """
        import pickle, sys
        import pyarrow as pa
        given = pickle.load(open(sys.argv[1], "rb"))
        {action}
        print(pa.default_memory_pool().max_memory() >> 20)
        """
    ).format(action=action)
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    words = [sys.executable, "-c", script, str(tmp_path / "given")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_publishing_holds_a_few_batches(store: Store, tmp_path: Path) -> None:
    """Shards of 96 MiB, of records whose copies stand in another order than they do."""
    n, size = 6000, 32 << 10
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "data": pa.array([rng.bytes(size) for _ in range(n)]),
            "label": ["a" if i % 4 else "b" for i in range(n)],
        }
    )
    release = releases.stage_release(store, table=table)
    # One staged shard per part, as ingest writes them.
    release.dataset = releases.stage_dataset(store, table, key="large", shard_records=10**6)
    release.recipe = release.recipe.model_copy(
        update={"copies": {"b": 1500}, "synthetic": {}, "classic": {}}
    )
    release.publish = release.publish.model_copy(update={"materialise": "copies", "shard_mib": 96})
    del table
    held = most_mib(
        tmp_path,
        "from prefect_augment.publish.publish import publish; publish(*given)",
        publish_arguments(**vars(release)),
    )
    shards = read_manifest(store).shards
    assert max(s.n_bytes for s in shards) > 40 << 20
    assert sum(s.n_bytes for s in shards) > 200 << 20
    assert held < MOST_MIB
    assert verify(store).ok

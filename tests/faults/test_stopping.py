"""A process that is told to stop ends within seconds, whatever it does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

# Its thread waits for a minute, as a task of a run does that fits a large model.
BUSY = """
import signal, sys, threading, time
from prefect_augment.flows import _stopping
_stopping.GRACE_SECONDS = 0.3
with _stopping.stoppable(command=True):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("ready", flush=True)
    {main}
"""
WAITS = "time.sleep(60)"
# C code that no signal interrupts: a lock that is taken twice.
DEAF = "import ctypes; [ctypes.CDLL(None).pthread_mutex_lock(lock) for lock in 2 * [bytes(64)]]"


def start(path: Path, code: str) -> tuple[subprocess.Popen[str], str]:
    """Run a program in a group of its own; return it with its first line."""
    path.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("main", [WAITS, DEAF], ids=["waits", "computes"])
def test_a_process_ends_though_its_threads_go_on(
    main: str, number: signal.Signals, tmp_path: Path
) -> None:
    process, line = start(tmp_path / "busy.py", BUSY.format(main=main))
    assert line == "ready"
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said.count("run the same command again to continue") == 1
    assert "Traceback" not in said

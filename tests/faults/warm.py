"""A process with all imports done that forks one child per run: a run then costs what it computes.

Started as a program by the tests of this folder. Each line on its input is one job as JSON, each line
on its output the answer. A job is ``{"call": "rebalance" | "command" | "read", …, "log": file,
"wait": bool}``; the child's output goes to the log. With ``"wait": false`` the answer is the child's
id at once, and ``{"call": "join", "pid": …}`` waits for it.

What happens to a child is decided by an audit hook, which Python calls right before every ``open``,
``rename`` (also ``os.replace``), ``link`` and ``remove``. The hook knows nothing of our code, so it
stays true whatever the store does. An event has a name, ``<operation> <path below the destination>``,
with the random part of temporary names cut out; ``"events"`` names a file that gets all of them, and
``"signal": {"at": name, "number": n}`` has the child send itself a signal at that event, once.
"""

import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
OPERATIONS = {"os.rename": "rename", "os.link": "link", "os.remove": "remove"}


def event_name(operation: str, args: tuple[Any, ...], root: str) -> str | None:
    """Return the name of a change below the root; None for all else."""
    if operation == "open":
        path, mode, flags = args
        if not (isinstance(mode, str) and mode.strip("rbt")) and not (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        ):
            return None
        said = "open"
    elif operation in OPERATIONS:
        # Of a rename or link the second path is what comes into being.
        path = args[0] if operation == "os.remove" else args[1]
        said = OPERATIONS[operation]
    else:
        return None
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(root):
        return None
    below = os.fspath(path)[len(root) :]
    below = re.sub(r"\.tmp-[0-9a-f]+-?", ".tmp-", below)
    # The report names its destination, so its stages have another key in each.
    below = re.sub(r"(_staging/report(?:-page)?/)[0-9a-f]+/", r"\1", below)
    return f"{said} {re.sub(r'probe-[0-9a-f]+', 'probe', below)}"


def watch(root: str, job: dict[str, Any]) -> None:
    """Note every change below the root, and signal this process at the one that the job names."""
    wanted = job.get("signal") or {}
    events = job.get("events")
    file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if events else None

    def hook(operation: str, args: tuple[Any, ...]) -> None:
        if operation not in OPERATIONS and operation != "open":
            return
        name = event_name(operation, args, root)
        if name is None:
            return
        if file is not None:
            os.write(file, name.encode() + b"\n")
        if wanted and name == wanted["at"]:
            number = wanted["number"]
            wanted.clear()
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def rebalance(job: dict[str, Any]) -> int:
    """The flow's own function in a process without an API, and nothing left to chance or time."""
    from prefect_augment.flows.rebalance import rebalance
    from prefect_augment.params import Compute, Destination, Evaluation, Quality, Source, TreesModel
    from prefect_augment.plan import strategies

    if job.get("labels") == "hard":
        # Which strategy wins is for the data to say; here it has to be the one that runs every stage.
        every = strategies.table_strategies
        mock.patch.object(
            strategies,
            "table_strategies",
            lambda *of, **options: [s for s in every(*of, **options) if s.family != "model"],
        ).start()
    rebalance.fn(
        source=Source(uri=job["source"], label=job["label"]),
        destination=Destination(uri=job["destination"]),
        model=TreesModel(),
        evaluation=Evaluation(
            estimators=["logistic"], n_seeds=1, n_settings=1, n_bootstrap=100, on_no_gain="publish"
        ),
        quality=Quality(labels=job.get("labels", "soft")),
        compute=Compute(workers=1),  # two at a time would change in another order every time
    )
    return 0


def rebalance_images(job: dict[str, Any]) -> int:
    """The same on images: a checkpoint after every step and candidates in batches of 32, so that there is a middle."""
    import logging

    from prefect_augment.flows.rebalance import rebalance
    from prefect_augment.params import (
        Budget,
        Compute,
        Destination,
        DiffusionModel,
        Evaluation,
        Quality,
        Source,
    )
    from prefect_augment.plan import estimate as estimates
    from prefect_augment.synthesis import sample

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("prefect_augment").setLevel(logging.INFO)
    estimates._STEPS_RANGE = (8, 8)
    sample.BATCH_IMAGES = 32
    rebalance.fn(
        source=Source(uri=job["source"]),
        destination=Destination(uri=job["destination"]),
        model=DiffusionModel(width=16, sampler_steps=2),
        budget=Budget(steps=40, batch_size=16, device="cpu", checkpoint_seconds=0),
        evaluation=Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100, on_no_gain="publish"),
        quality=Quality(near_copy_quantile=0.0, fidelity_quantile=0.0),
        compute=Compute(workers=1),
    )
    return 0


def command(job: dict[str, Any]) -> int:
    """The command line, as in a shell."""
    from prefect_augment.cli.app import main

    sys.argv = ["prefect-augment", *job["words"]]
    try:
        main()
    except SystemExit as exc:
        return int(exc.code or 0)
    return 0


def read(job: dict[str, Any]) -> int:
    """Be a reader until told to stop: the newest version whole, every digest checked, again and again.

    Each look is one line of the log, ``<version> <content digest> <records>``.
    """
    from prefect_augment.loading.dataset import open_dataset

    parent = os.getppid()
    while not Path(job["stop"]).exists() and os.getppid() == parent:
        dataset = open_dataset(job["destination"], verify=True)
        n = sum(dataset.to_table(split).num_rows for split in dataset.class_counts)
        print(dataset.version, dataset.manifest.content_digest, n, flush=True)
        time.sleep(0.01)
    return 0


CALLS = {
    "rebalance": rebalance,
    "rebalance_images": rebalance_images,
    "command": command,
    "read": read,
}


def child(job: dict[str, Any]) -> int:
    """Do one job in a process of its own, which ends with it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.setsid()
    # A shell that started the tests in the background has it ignored, children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "destination" in job:
        watch(job["destination"] + "/", job)
    if "file_bytes" in job:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an error and not the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], resource.RLIM_INFINITY))
    if "disk_bytes" in job:
        mount_small(job)
    try:
        return CALLS[job["call"]](job)
    except BaseException:  # noqa: BLE001 - whatever it is, the log has it and the exit code says so
        traceback.print_exc()
        return 1
    finally:
        if "disk_bytes" in job:
            # The mount ends with this process, so what was written is copied out before.
            shutil.copytree(job["destination"], job["keep"])


def mount_small(job: dict[str, Any]) -> None:
    """Give this process a file system of its own, of so many bytes, in the destination's place."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    options = f"size={job['disk_bytes']}".encode()
    where = job["destination"].encode()
    Path(job["destination"]).mkdir(parents=True, exist_ok=True)
    if libc.mount(b"tmpfs", where, b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    if "start" in job:
        shutil.copytree(job["start"], job["destination"], dirs_exist_ok=True)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    if job["call"] == "join":
        pid = job["pid"]
        if job.get("stopped"):
            _, status = os.waitpid(pid, os.WUNTRACED)
            return {"pid": pid, "code": -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0}
    else:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(job)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if not job.get("wait", True):
            return {"pid": pid}
        if "seconds" in job:
            time.sleep(job["seconds"])
            os.kill(pid, signal.SIGKILL)  # a zombie's id stays its own until it is waited for
    _, status = os.waitpid(pid, 0)
    return {"pid": pid, "code": os.waitstatus_to_exitcode(status)}


IMPORTED = (
    "prefect_augment.cli.app",
    "prefect_augment.cli.runs",
    "prefect_augment.flows.rebalance",
    "prefect_augment.genmodels.trees.model",
    "prefect_augment.loading.dataset",
    "prefect_augment.report.charts",
    "prefect_augment.report.html",
    "prefect_augment.report.report",
)
OF_IMAGES = (
    "albumentations",
    "torch._dynamo",  # which an optimizer imports
    "prefect_augment.evaluation.classifiers.convnet",
    "prefect_augment.experiment.image_evaluator",
    "prefect_augment.genmodels.images.flow_matching",
)


def warm_up() -> None:
    """Import what a run imports, which takes half of its time, and compute nothing: threads do not survive a fork.

    Soft labels are those of a small ensemble and charts coarse, as by `quick_runs`, the same in every run.
    """
    for name in IMPORTED + OF_IMAGES * ("images" in sys.argv):
        importlib.import_module(name)
    from prefect_augment.evaluation.classifiers import soft_label_ensemble as soft_labels
    from prefect_augment.figures import style
    from prefect_augment.report.environment import environment

    soft_labels.N_FOLDS, soft_labels.FOREST_TREES = 2, 10
    style.DOTS_PER_INCH = (40,)
    for template in environment().list_templates():
        environment().get_template(template)


def main() -> None:
    warm_up()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""Lets a test hold a run at a write: every interpreter that has this folder on its path loads this.

A stage may be over before a test has seen it begin, so a test that must act in the middle of one asks
for a barrier (`Server.hold`): a file in ``$HOLD_WRITES`` that names a pattern of full paths and how many
such writes go through. The next one leaves its process's id beside the barrier, and waits for as long as
the barrier is there, as it would for a store that is slow to answer.

Runs are also made shorter where nobody looks at what is computed: with ``$CLASSIFIER_STEPS`` the network
that compares strategies of images is trained for so many steps, and with ``$QUICK_RUNS`` soft labels are those of
a small ensemble and charts coarse, as by the fixture `quick_runs`.
"""

import fnmatch
import importlib.abc
import importlib.util
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

Change = Callable[[ModuleType], None]
_passed: Counter[str] = Counter()


def _wait(full: str) -> None:
    for barrier in sorted(Path(os.environ["HOLD_WRITES"]).glob("*.json")):
        try:
            asked = json.loads(barrier.read_text())
        except FileNotFoundError:  # opened meanwhile
            continue
        if fnmatch.fnmatchcase(full, asked["paths"]):
            _passed[barrier.name] += 1
            if _passed[barrier.name] > asked["after"]:
                who = barrier.with_suffix(".who")
                who.write_text(str(os.getpid()))
                who.replace(barrier.with_suffix(".held"))
                while barrier.exists():
                    time.sleep(0.1)


def _held(write: Callable[..., Any]) -> Callable[..., Any]:
    def held(store: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        _wait(store.full(path))
        return write(store, path, *args, **kwargs)

    return held


def _hold_writes(module: ModuleType) -> None:
    for name in ("put", "put_if_absent"):
        setattr(module.Store, name, _held(getattr(module.Store, name)))


def _shorten_comparing(module: ModuleType) -> None:
    steps = int(os.environ["CLASSIFIER_STEPS"])
    module._STEPS_RANGE = (steps, steps)  # type: ignore[attr-defined]


def _teach_less(module: ModuleType) -> None:
    for name, n in {"N_FOLDS": 2, "FOREST_TREES": 10}.items():
        setattr(module, name, n)


def _draw_coarsely(module: ModuleType) -> None:
    module.DOTS_PER_INCH = (40,)  # type: ignore[attr-defined]


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, change: Change) -> None:
        self.loader, self.change = loader, change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.change(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Sees one module when it is imported and changes it then, so that nothing is imported here."""

    def __init__(self, name: str, change: Change) -> None:
        self.name, self.change = name, change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.change)
        return spec


CHANGES = (
    ("HOLD_WRITES", "prefect_augment.storage.store", _hold_writes),
    ("CLASSIFIER_STEPS", "prefect_augment.plan.estimate", _shorten_comparing),
    ("QUICK_RUNS", "prefect_augment.evaluation.classifiers.soft_label_ensemble", _teach_less),
    ("QUICK_RUNS", "prefect_augment.figures.style", _draw_coarsely),
)
for variable, name, change in CHANGES:
    if os.environ.get(variable):
        sys.meta_path.insert(0, _Finder(name, change))

"""What benchmarks hold against limits: one form for all, printed as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Goal", "print_goals", "print_heading", "print_row"]


@dataclass(frozen=True)
class Goal:
    """One figure held against a limit, with a peer's figure beside it."""

    metric: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    goal: str
    met: bool

    def row(self) -> dict[str, Any]:
        """Return the form that all benchmarks write."""
        ratio = self.ours / self.peer if self.peer else math.nan
        numbers = {"ours": self.ours, "peer": self.peer, "ratio": ratio}
        return {
            "metric": self.metric,
            "unit": self.unit,
            **{k: None if math.isnan(v) else round(v, 5) for k, v in numbers.items()},
            "peer_name": self.peer_name,
            "goal": self.goal,
            "met": self.met,
        }


def print_goals(goals: Sequence[Goal]) -> None:
    """Print every goal with what was reached."""
    print("\n### goals\n")
    print_heading(["goal", "ours", "peer", "wanted", "met"])
    for goal in goals:
        peer = "" if math.isnan(goal.peer) else f"{goal.peer:,.4g} ({goal.peer_name})"
        met = "yes" if goal.met else "NO"
        print_row([goal.metric, f"{goal.ours:,.4g}", peer, goal.goal, met])
    print(f"\n{sum(g.met for g in goals)} of {len(goals)} met")


def print_heading(titles: Sequence[str]) -> None:
    """Print the head of a table in Markdown."""
    print_row(titles)
    print_row(["---"] * len(titles))


def print_row(cells: Sequence[str]) -> None:
    """Print one of its rows."""
    print("| " + " | ".join(cells) + " |", flush=True)

"""Draw docs/folders.svg from the imports: one row per folder, an arc to each folder that it imports.

Arcs that others imply are left out, so that a reader sees the ways down and not all 200 pairs.
"""

from __future__ import annotations

import ast
import re
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "prefect_augment"
ROW, LEFT, WIDTH = 24, 250, 1000  # pixels

# What the layers of the contract are about, from the top.
BANDS = {
    "cli": ("what people run", "#e8eefc"),
    "estimators": ("the steps", "#e7f5ee"),
    "augmentation": ("what computes", "#fdf1e0"),
    "split": ("where data are", "#f6eafa"),
    "registry": ("what all know", "#eeeeee"),
}


def folders() -> list[str]:
    """Return the folders and root modules in the order of the layers contract."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    return [name.strip() for layer in layers for name in layer.split("|")]


def arcs(names: list[str]) -> list[tuple[str, str]]:
    """Return the pairs (importer, imported) that no way through other folders implies."""
    graph = grimp.build_graph("prefect_augment")
    below = {
        a: {
            b
            for b in names
            if a != b and graph.find_shortest_chains(f"prefect_augment.{a}", f"prefect_augment.{b}")
        }
        for a in names
    }
    return [
        (a, b)
        for a in names
        for b in sorted(below[a], key=names.index)
        if not any(b in below[c] for c in below[a] - {b})
    ]


def row(name: str) -> tuple[str, int]:
    """Return what a folder is, as its docstring says, and its number of modules."""
    folder = PACKAGE / name
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    about = re.split(r"[.:;]", ast.get_docstring(ast.parse(path.read_text())) or "")[0]
    n_modules = sum(p.name != "__init__.py" for p in folder.resolve().rglob("*.py")) or 1
    return about, n_modules


def draw() -> str:
    """Return the picture as SVG."""
    names = folders()
    place = {name: 30 + ROW * i for i, name in enumerate(names)}
    height = 40 + ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    starts = [place[name] for name in BANDS] + [30 + ROW * len(names)]
    for (title, colour), top, bottom in zip(BANDS.values(), starts, starts[1:], strict=False):
        y = top - ROW / 2
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT}" height="{bottom - top - 2}" fill="{colour}"/>'
        )
        parts.append(
            f'<text font-size="13" x="{WIDTH - 10}" y="{y + 17}" text-anchor="end" fill="#666">{title}</text>'
        )
    for a, b in arcs(names):
        y, end = place[a], place[b]
        reach = LEFT - 4 - 2.2 * (end - y) ** 0.75
        parts.append(
            f'<path d="M{LEFT - 4} {y} C{reach:.0f} {y} {reach:.0f} {end} {LEFT - 4} {end}" '
            'fill="none" stroke="#4a6fa5" stroke-opacity="0.55"/>'
        )
    for name in names:
        about, n_modules = row(name)
        y = place[name] + 4
        parts.append(f'<circle cx="{LEFT - 4}" cy="{place[name]}" r="3" fill="#4a6fa5"/>')
        parts.append(
            f'<text font-size="13" x="{LEFT + 10}" y="{y}" font-weight="bold">{name}</text>'
        )
        parts.append(
            f'<text font-size="13" x="{LEFT + 140}" y="{y}" text-anchor="end" fill="#666">{n_modules}</text>'
        )
        parts.append(f'<text font-size="13" x="{LEFT + 155}" y="{y}">{escape(about)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "folders.svg").write_text(draw())

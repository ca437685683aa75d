"""Numbers and user strings as in the report, the card and the artifacts; and YAML from anybody."""

import difflib
import html
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from prefect_augment.schema import Interval, MeasureInfo, class_order

MISSING = "–"
MAX_LISTED = 10  # classes by name
# Control characters of ASCII have pictures; those of Latin-1, and lone surrogates, have none.
_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_MARKDOWN = re.compile(r"([\\`*_\[\]#|~$!])")


def class_list(counts: Mapping[str, int]) -> str:
    """Return classes with their numbers of records, the largest first; the rest beyond ten is one number.

    >>> class_list({"lost": 2, "cracked": 1400, "ok": 0})
    'cracked (1,400), lost (2)'
    """
    ordered = sorted(((name, n) for name, n in counts.items() if n), key=lambda item: -item[1])
    listed = [f"{name} ({n:,})" for name, n in ordered[:MAX_LISTED]]
    if rest := ordered[MAX_LISTED:]:
        listed.append(f"{len(rest):,} more classes ({sum(n for _, n in rest):,})")
    return ", ".join(listed) or "no class"


def count(n: float | None) -> str:
    """``12345`` as ``12,345``; a dash for None."""
    return MISSING if n is None or not math.isfinite(n) else f"{n:,.0f}"


def number(x: float | None) -> str:
    """Three significant digits; a dash for None, NaN and infinity."""
    return MISSING if x is None or not math.isfinite(x) else f"{x:.3g}".replace("-", "−")


def percent(x: float | None) -> str:
    """A share in [0, 1] in percent with one digit, without the sign."""
    return MISSING if x is None or not math.isfinite(x) else f"{100 * x:.1f}".replace("-", "−")


def measured(x: float | None, measure: MeasureInfo) -> str:
    """A value of a measure in its unit, which a heading names."""
    return percent(x) if measure.unit == "points" else number(x)


def points(x: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if x is None or not math.isfinite(x):
        return MISSING
    # Round first: a difference of -0.0001 is not "−0.0".
    return f"{round(100 * x, 1) + 0.0:+.1f}".replace("-", "−")


def effect(x: float | None) -> str:
    """The size of a difference of shares in percentage points, without a sign."""
    return points(x).lstrip("+")


def interval_percent(interval: Interval | None) -> str:
    """``81.2 (79.0 to 83.4)``."""
    if interval is None:
        return MISSING
    return f"{percent(interval.estimate)} ({percent(interval.low)} to {percent(interval.high)})"


def interval_number(interval: Interval | None, *, sign: bool = False) -> str:
    """``0.123 (0.110 to 0.140)``."""
    if interval is None:
        return MISSING
    values = (interval.estimate, interval.low, interval.high)
    e, low, high = (f"{v:{'+' if sign else ''}.3f}".replace("-", "−") for v in values)
    return f"{e} ({low} to {high})"


def interval_points(interval: Interval) -> str:
    """``+2.1 (+0.4 to +3.8)``."""
    return f"{points(interval.estimate)} ({points(interval.low)} to {points(interval.high)})"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def visible(text: object) -> str:
    """A user's string with invisible and unencodable characters made visible.

    Control characters become their pictures (U+2400 and following), lone surrogates U+FFFD, and an empty or blank
    string says so. HTML and markdown are escaped elsewhere.
    """
    shown = str(text).translate(_PICTURES)
    return shown if shown.strip() else f"(blank: {len(shown)} characters)" if shown else "(empty)"


def markdown_text(text: object) -> str:
    """A user's string for a line or table cell of markdown, escaped."""
    return _MARKDOWN.sub(r"\\\1", html.escape(visible(text), quote=False))


def natural_order(name: str) -> tuple[int, float, str]:
    """Sorting key for class names: numbers by value, then texts."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (0, value, name) if math.isfinite(value) else (1, 0.0, name)


def suggestion(name: str, known: Collection[str], *, n_shown: int = 20) -> str:
    """Return "did you mean …?" with the known names, for an error about an unknown name.

    >>> suggestion("sikc", ["sick", "well"])
    "did you mean 'sick'? There are: 'sick', 'well'"
    """
    ordered = class_order(known)
    near = difflib.get_close_matches(name, ordered, n=1) or [
        k for k in ordered if k.casefold() == name.casefold()
    ]
    shown = ", ".join(map(repr, ordered[:n_shown])) + (
        f" and {len(ordered) - n_shown} more" * (len(ordered) > n_shown)
    )
    return (f"did you mean {near[0]!r}? " if near else "") + f"There are: {shown}"


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string in a value of JSON, its names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from strings_in(item)


MAX_YAML_BYTES = 8 << 20
MAX_YAML_DEPTH = 50


def load_yaml(data: str | bytes) -> Any:
    """Read YAML that anybody may have written.

    ValueError if it is malformed, nested too deeply or too large, or has aliases: a few of them stand for
    more values than fit into memory.
    """
    import yaml  # not at the start of the command line

    if len(data) > MAX_YAML_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, and at most {MAX_YAML_BYTES:,} are read")
    try:
        return yaml.load(data, _loader())  # noqa: S506 - a safe one
    except (yaml.YAMLError, UnicodeDecodeError, ArithmeticError, LookupError, TypeError) as exc:
        raise ValueError(" ".join(str(exc).split())) from exc


@cache
def _loader() -> Any:
    """YAML's safe loader, without aliases and with a bound on nesting."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias (*name); write the value out instead")
            if self.depth == MAX_YAML_DEPTH:
                raise ValueError("it is nested too deeply")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader

"""Codecs: one Arrow column as float64 (NaN for missing) and back into the same type.

Decoding snaps to the domain that was seen: the range, the grid of a number (whole numbers, decimals,
multiples of 50, full hours), the levels of a category. A codec is stored as plain JSON.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Bool, Float
from prefect_augment.encoding.values import (
    from_integers,
    is_integer_like,
    to_integers,
    values_from_json,
    values_to_json,
    without_nan,
)
from prefect_augment.errors import ParameterError, SchemaError

# A number may lie beyond those seen by this share of their range before it counts as another domain.
RANGE_SLACK = 0.05
EXACT = 2**53  # float64 holds every integer up to here
MAX_DECIMALS = 15  # a float64 with more is taken as continuous

Missing = Literal["null", "nan"]


@dataclass(frozen=True)
class NumberCodec:
    """A numeric column: floats, integers, decimals, dates, times, timestamps, durations.

    A value on a grid is ``(low + k * step) / 10**decimals`` with whole ``k`` in [0, n_steps]. The matrix holds the
    value (a date as its day, a timestamp as ticks since 1970 UTC), or ``k`` where numbers exceed 2**53 (``offset``);
    above 2**53 steps the last digits are lost. A float column without a grid is continuous in [minimum, maximum].
    """

    kind: pa.DataType
    missing: Missing | None  # how a missing value is written; None where none was seen
    decimals: int | None = None  # None: continuous
    low: int = 0
    step: int = 1
    n_steps: int = 0
    offset: bool = False
    minimum: float = math.nan  # NaN: no value was seen
    maximum: float = math.nan

    is_category = False
    n_levels = 0

    @property
    def is_continuous(self) -> bool:
        """Whether the values are on no grid, so that hardly any occurs twice."""
        return self.decimals is None

    def domain_text(self) -> str:
        """Describe the domain, for messages."""
        if math.isnan(self.minimum):
            return "it has none"
        # From the codec itself: dates and decimals come out as people write them.
        ends = self.decode(np.array([self.minimum, self.maximum])).to_pylist()
        step = "" if self.is_continuous else ", on the grid that was seen"
        return f"they go from {ends[0]} to {ends[1]}{step}"

    def encode(self, values: pa.Array) -> Float:
        """Return the values as float64, shape (n,); null, NaN and infinite values are NaN."""
        if pa.types.is_floating(values.type):
            x = _floats(values)
            return np.where(np.isfinite(x), x, np.nan)
        numbers = to_integers(values)
        missing = values.is_null().to_numpy(zero_copy_only=False)
        if self.offset:
            x = ((numbers.astype(object) - self.low) / self.step).astype(np.float64)
        else:
            x = numbers.astype(np.float64) / 10.0 ** (self.decimals or 0)
        return np.where(missing, np.nan, x)

    def decode(self, x: Float) -> pa.Array:
        """Return values of the column's type: the nearest ones of its domain."""
        if math.isnan(self.minimum):  # no value was seen, so there is none to give
            x = np.full(len(x), np.nan)
        missing = np.isnan(x)
        if self.decimals is None:
            return self._as_floats(np.clip(x, self.minimum, self.maximum), missing)
        numbers = self._on_grid(np.where(missing, 0.0, x))
        if pa.types.is_floating(self.kind):
            return self._as_floats(numbers.astype(np.float64) / 10.0**self.decimals, missing)
        return from_integers(numbers, missing, self.kind)

    @property
    def spacing(self) -> float:
        """Distance of neighbours on the grid, in the matrix form; 0 where there is no grid."""
        if self.decimals is None:
            return 0.0
        return 1.0 if self.offset else self.step / 10.0**self.decimals

    @property
    def is_free(self) -> bool:
        """Whether a value may be any float64, so that two records hardly ever have the same by chance."""
        return self.is_continuous and pa.types.is_float64(self.kind)

    def snapped(self, x: Float) -> Float:
        """Return the values as they come back once they are written; NaN for missing."""
        return self.encode(self.decode(x))

    def in_domain(self, x: Float) -> Bool:
        """Tell which values lie in the range that was seen; NaN does where missing values were."""
        with np.errstate(invalid="ignore"):
            inside = (x >= self.minimum) & (x <= self.maximum)
        return inside | (np.isnan(x) & (self.missing is not None))

    def outgrown_by(self, other: "Codec") -> str:
        """Return how ``other``, fitted on more records, exceeds this domain; empty if it does not."""
        if not isinstance(other, NumberCodec) or other.kind != self.kind:
            return "is of another type"
        if other.missing != self.missing:
            return "has missing values now"
        if math.isnan(self.minimum) or math.isnan(other.minimum):
            return "" if math.isnan(other.minimum) else "has values now"
        if (other.decimals, other.step) != (self.decimals, self.step):
            return "has values between those that were possible"
        slack = RANGE_SLACK * (self.maximum - self.minimum)
        if other.minimum < self.minimum - slack or other.maximum > self.maximum + slack:
            return (
                f"goes from {other.minimum:g} to {other.maximum:g} now, and went from "
                f"{self.minimum:g} to {self.maximum:g}"
            )
        return ""

    def _on_grid(self, x: Float) -> Array:
        """Return the nearest whole numbers ``low + k * step``."""
        if not self.offset:
            x = (np.rint(x * 10.0 ** (self.decimals or 0)) - self.low) / self.step
        k = np.clip(np.rint(x), 0, self.n_steps)
        big = max(abs(self.low), abs(self.low + self.step * self.n_steps), self.n_steps) >= 2**62
        # Above 2**53 float(n_steps) may have been rounded up, so the whole numbers are bounded too.
        if big:
            whole = np.array([min(int(v), self.n_steps) for v in k], dtype=object)
        else:
            whole = np.minimum(k.astype(np.int64), self.n_steps)
        return whole * self.step + self.low

    def _as_floats(self, x: Float, missing: Bool) -> pa.Array:
        dtype = self.kind.to_pandas_dtype()
        if self.missing == "nan":
            return pa.array(np.where(missing, np.nan, x).astype(dtype), type=self.kind)
        return pa.array(np.where(missing, 0.0, x).astype(dtype), mask=missing, type=self.kind)

    def config(self) -> dict[str, Any]:
        """Return everything but the type as JSON."""
        unknown = dict.fromkeys(("minimum", "maximum")) if math.isnan(self.minimum) else {}
        fields = {name: value for name, value in vars(self).items() if name != "kind"}
        return {"codec": "number", **fields, **unknown}


def fit_number(values: pa.Array, *, column: str, nullable: bool) -> NumberCodec:
    """Return the codec of a numeric column; ``values`` come from :func:`values.plain`.

    Raises SchemaError, with the column's name, if the type is not a number.
    """
    kind = values.type
    if pa.types.is_floating(kind):
        return _fit_floats(values, nullable=nullable)
    if not is_integer_like(kind):
        raise SchemaError(
            f"column {column!r} has type {kind}, which is no number; "
            "give it kind category, opaque or drop in source.columns.",
            column=column,
        )
    missing: Missing | None = "null" if values.null_count else None
    decimals = kind.scale if pa.types.is_decimal(kind) else 0
    numbers = to_integers(values.drop_null())
    if not len(numbers):
        return NumberCodec(kind, missing, decimals)
    low, step, n_steps = _grid(numbers)
    high = low + step * n_steps
    if max(abs(low), abs(high)) > EXACT:
        return NumberCodec(kind, missing, decimals, low, step, n_steps, True, 0.0, float(n_steps))
    scale = 10.0**decimals
    return NumberCodec(
        kind, missing, decimals, low, step, n_steps, False, low / scale, high / scale
    )


def _fit_floats(values: pa.Array, *, nullable: bool) -> NumberCodec:
    x = _floats(values)
    seen = x[np.isfinite(x)]
    missing: Missing | None = None
    if len(seen) < len(x):
        # NaN and null are both "missing" to a model; nulls win where a column has both.
        missing = "null" if values.null_count and nullable else "nan"
    if not len(seen):
        return NumberCodec(values.type, missing)
    dtype = values.type.to_pandas_dtype()
    # Of 0.0 and -0.0 the first row's would be the smallest: adding zero leaves one of them.
    bounds = float(seen.min()) + 0.0, float(seen.max()) + 0.0
    decimals = _decimals(seen, dtype)
    if decimals is None:
        return NumberCodec(values.type, missing, minimum=bounds[0], maximum=bounds[1])
    numbers = np.rint(seen * 10.0**decimals).astype(np.int64)
    low, step, n_steps = _grid(numbers)
    return NumberCodec(values.type, missing, decimals, low, step, n_steps, False, *bounds)


def _floats(values: pa.Array) -> Float:
    """Return a float array as float64, NaN for null."""
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _decimals(x: Float, dtype: Any) -> int | None:
    """Return the fewest decimals that write every value exactly; None if no number does."""
    largest = float(np.abs(x).max())
    # A negative zero has no whole number; as a continuous value it comes back as it was.
    if np.any((x == 0) & np.signbit(x)):
        return None
    for decimals in range(MAX_DECIMALS + 1):
        scale = 10.0**decimals
        if largest * scale >= EXACT:
            return None
        if np.array_equal((np.rint(x * scale) / scale).astype(dtype), x.astype(dtype)):
            return decimals
    return None


def _grid(numbers: Array) -> tuple[int, int, int]:
    """Return lowest number, largest common step and number of steps of whole numbers."""
    low, high = int(numbers.min()), int(numbers.max())
    wide = high - low >= 2**63
    gaps = (numbers.astype(object) if wide else numbers) - low
    step = math.gcd(*gaps.tolist()) if gaps.dtype == object else int(np.gcd.reduce(gaps))
    step = max(1, step)
    return low, step, (high - low) // step


@dataclass(frozen=True)
class CategoryCodec:
    """A category column: text, booleans, or any other type declared one.

    ``levels`` are the values seen, in their natural order; the matrix holds their index.
    """

    kind: pa.DataType  # of the values; a dictionary's value type
    missing: Missing | None
    levels: pa.Array

    is_category = True
    is_continuous = False

    @property
    def n_levels(self) -> int:
        """Values seen."""
        return len(self.levels)

    def domain_text(self) -> str:
        """Describe the domain, for messages."""
        shown = ", ".join(repr(v) for v in self.levels[:20].to_pylist())
        return shown + (f" and {self.n_levels - 20} more" if self.n_levels > 20 else "")

    def encode(self, values: pa.Array) -> Float:
        """Return level codes as float64, shape (n,); null and unseen values are NaN."""
        # Arrow would take NaN for a level.
        codes = pc.index_in(without_nan(values), value_set=self.levels, skip_nulls=True)
        return codes.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]

    def decode(self, x: Float) -> pa.Array:
        """Return the levels of the nearest codes."""
        missing = np.isnan(x) | (self.n_levels == 0)
        codes = np.clip(np.rint(np.where(missing, 0, x)), 0, max(0, self.n_levels - 1)).astype(
            np.int64
        )
        taken = self.levels.take(pa.array(codes, mask=missing))
        return taken.fill_null(math.nan) if self.missing == "nan" else taken

    def in_domain(self, x: Float) -> Bool:
        """Tell which codes are levels; NaN is in the domain where missing values were seen."""
        with np.errstate(invalid="ignore"):
            known: Bool = (x >= 0) & (x < self.n_levels) & (x == np.rint(x))
        return known | (np.isnan(x) & (self.missing is not None))

    def outgrown_by(self, other: "Codec") -> str:
        """Return how ``other``, fitted on more records, exceeds this domain; empty if it does not."""
        if not isinstance(other, CategoryCodec) or other.kind != self.kind:
            return "is of another type"
        if other.missing != self.missing:
            return "has missing values now"
        is_new = pc.invert(pc.is_in(other.levels, value_set=self.levels))
        new = values_to_json(other.levels.filter(is_new), column="")
        return f"has {len(new)} new values, such as {new[0]!r}" if new else ""

    def config(self) -> dict[str, Any]:
        """Return everything but the type as JSON."""
        return {
            "codec": "category",
            "missing": self.missing,
            "levels": values_to_json(self.levels, column=""),
        }


def fit_category(values: pa.Array, *, column: str, nullable: bool) -> CategoryCodec:
    """Return the codec of a category column; raises SchemaError if its values cannot be levels."""
    values_to_json(values[:0], column=column)  # refuses a type without levels by name
    clean = without_nan(values)
    missing: Missing | None = None
    if clean.null_count:
        missing = "null" if values.null_count and nullable else "nan"
    written = values_to_json(clean.drop_null().unique(), column=column)
    floating = pa.types.is_floating(values.type)
    levels = sorted(written, key=float.fromhex if floating else None)
    return CategoryCodec(values.type, missing, values_from_json(levels, values.type))


Codec = NumberCodec | CategoryCodec


def codec_from_config(config: dict[str, Any], kind: pa.DataType) -> Codec:
    """Return the codec that a ``config()`` describes."""
    if config["codec"] == "category":
        return CategoryCodec(kind, config["missing"], values_from_json(config["levels"], kind))
    if config["codec"] == "number":
        fields: dict[str, Any] = {name: value for name, value in config.items() if name != "codec"}
        for name in ("minimum", "maximum"):
            fields[name] = math.nan if fields[name] is None else fields[name]
        return NumberCodec(kind, **fields)
    raise ParameterError(
        f"unknown codec {config['codec']!r}; the encoder was saved by a newer version."
    )

"""What synthetic records of a table have to satisfy."""

from typing import Annotated, Literal

from pydantic import Field

from prefect_augment.params.base import Params


class Inequality(Params):
    """One column is below or above another: a start before its end."""

    kind: Literal["inequality"] = "inequality"
    left: str = Field(min_length=1)
    """The column before the sign."""
    operator: Literal["<", "<=", ">", ">="] = "<="
    """How left compares with right where both have a value."""
    right: str = Field(min_length=1)
    """The column behind the sign."""


class Positive(Params):
    """Columns have no value below zero."""

    kind: Literal["positive"] = "positive"
    columns: list[str] = Field(min_length=1)
    """Columns of numbers or durations."""
    zero: bool = False
    """Whether zero is allowed too."""


class Combination(Params):
    """Columns occur together only as in the real records: a city in its own country."""

    kind: Literal["combination"] = "combination"
    columns: list[str] = Field(min_length=2)
    """Columns whose values, nulls included, belong together."""


class Unique(Params):
    """No two records have the same values, real ones included."""

    kind: Literal["unique"] = "unique"
    columns: list[str] = Field(min_length=1)
    """Columns that together tell records apart; records with a null there are not compared."""


Constraint = Annotated[Inequality | Positive | Combination | Unique, Field(discriminator="kind")]

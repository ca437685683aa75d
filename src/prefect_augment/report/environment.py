"""The templates of the page, the dataset card and the summaries in markdown."""

import inspect
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from prefect_augment import text


@cache
def environment() -> Environment:
    """The templates, compiled once, with formatting functions as filters; HTML is escaped, markdown by its filter."""
    templates = Environment(
        loader=PackageLoader("prefect_augment.report"),
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(inspect.getmembers(text, inspect.isfunction))
    templates.filters["natural_sort"] = lambda names: sorted(names, key=text.natural_order)
    return templates


def render(template: str, **context: Any) -> str:
    """The text of a template of :func:`environment`."""
    return environment().get_template(template).render(context)

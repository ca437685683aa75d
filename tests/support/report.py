"""A section of the report's page by itself."""

import re
from typing import Any

from prefect_augment.report.html import render_page
from prefect_augment.report.json import ReportData
from prefect_augment.schema import FilterResult

__all__ = ["section"]


def section(name: str, *, candidates: FilterResult | None = None, **findings: Any) -> str:
    """HTML of a section of the page without its charts; empty where the page leaves it out."""
    data = ReportData(title="a", label="y", candidates=candidates, **findings)
    page = render_page(data, ()).decode()
    inside = re.search(f'<section id="{name}">\n(.*?)\n</section>', page, flags=re.DOTALL)
    return inside[1] if inside else ""

"""The page that a person explores: one self-contained HTML file, made of a template, its style and its script.

Whatever comes from data is escaped by the template engine or embedded as inert JSON; a content security policy lets the
page run its own script and nothing else, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from circuits import wording
from circuits.page_data import STEPS, Texts, page_data, script_json
from circuits.summary import CANNOT_TELL
from refusal.schemas import Comparison, Report

MOST_BYTES = 1_900_000
"""Size beyond which less of the circuits and texts is embedded."""


def html_page(report: Report, texts: Mapping[str, Texts]) -> str:
    """Return the page.

    Args:
        report: Everything that was found.
        texts: Prompts and responses by model; the page shows them behind a click only.
    """
    page = ""
    for limits in STEPS:
        data = page_data(report, texts, limits)
        page = _template().render(
            report=report,
            data=data,
            limits=limits,
            payload=Markup(script_json(data)),
            style=Markup(_asset("report.css")),
            script=Markup(_asset("report.js")),
            script_hash=_hash(_asset("report.js")),
            configuration=json.dumps(report.configuration, indent=2, ensure_ascii=False, sort_keys=True, default=str),
            cannot_tell=CANNOT_TELL,
        )
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _asset(name: str) -> str:
    return resources.files("circuits").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _template():  # type: ignore[no-untyped-def]
    ...


def used_prompts(comparison: Comparison) -> int | None:
    """Return how many refused prompts of each category were used; None when no category could be."""
    used = [support.n_used for support in comparison.support.values() if support.n_used]
    return min(used) if used else None

"""The page that a person explores: one self-contained HTML file, made of a template, its style and its script.

Whatever comes from data is escaped by the template engine or embedded as inert JSON; a content security policy lets the
page run its own script and nothing else, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from circuits import wording
from circuits.direction_report import findings_of
from circuits.page_data import STEPS, Texts, page_data, script_json
from circuits.summary import CANNOT_TELL, table_categories, used_prompts
from refusal.schemas import Report

TEMPLATES = Path(__file__).parent / "templates"
"""The folder with the page's template, style and script."""
MOST_BYTES = 1_900_000
"""Size of the page beyond which less of the circuits and texts is embedded."""


def html_page(report: Report, texts: Mapping[str, Texts], training: Mapping[tuple[str, str], str] | None = None) -> str:
    """Return the page.

    Args:
        report: Everything that was found.
        texts: Prompts and responses by model; the page shows them behind a click only.
        training: By model and site, where the picture of the SAEs' training lies beside the page.
    """
    page = ""
    script = _asset("report.js")
    for limits in STEPS:
        data = page_data(report, texts, limits)
        page = _template().render(
            report=report,
            rows={model: table_categories(report, model) for model in report.models},
            thresholds=next(iter(report.comparisons.values())).thresholds,
            training=training or {},
            directions=findings_of(report),
            data=data,
            limits=limits,
            payload=Markup(script_json(data)),
            style=Markup(_asset("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            configuration=_readable(report.configuration),
            cannot_tell=CANNOT_TELL,
        )
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _readable(configuration: Mapping[str, Any]) -> str:
    # Escapes of lone surrogates stay escapes: UTF-8 cannot hold them.
    text = json.dumps(configuration, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _number3(value: float | None) -> str:
    return wording.number(value, 3)


def _short(value: float) -> str:
    return f"{value:g}"


def _percent(share: float) -> str:
    """Return where a value lies on a scale from 0 to 1, in percent; what lies outside stands at the end."""
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


_FILTERS: dict[str, Callable[..., Any]] = {
    "number": wording.number,
    "number3": _number3,
    "interval": wording.interval,
    "estimate": lambda pair: wording.estimate(*pair),
    "plural": wording.plural,
    "line": wording.one_line,
    "short": _short,
    "percent": _percent,
    "capitalize_first": _capitalised,
    "used": used_prompts,
}


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.get_template("report.html.j2")

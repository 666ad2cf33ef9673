"""The template engine of the pages: where templates lie and how values are put into words; everything is escaped."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from circuits.summary import used_prompts
from refusal import wording
from refusal.patching.written import rate

TEMPLATES = Path(__file__).parent / "templates"
"""The folder with templates, styles and the script."""


def asset(name: str) -> str:
    """Return a file of the folder as text."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


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
    "measure": wording.measured,
    "refusals": rate,
    "plural": wording.plural,
    "line": wording.one_line,
    "short": _short,
    "percent": _percent,
    "capitalize_first": _capitalised,
    "used": used_prompts,
}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment


def template(name: str) -> Template:
    """Return a template of the folder."""
    return _environment().get_template(name)

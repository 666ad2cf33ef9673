"""The page that a person explores: one self-contained HTML file, made of a template, its style and its script.

Whatever comes from data is escaped by the template engine or embedded as inert JSON; a content security policy lets the
page run its own script and nothing else, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from circuits.directions.report import findings_of
from circuits.page_data import STEPS, Texts, page_data, script_json
from circuits.page_templates import asset, template
from circuits.patching.page import NO_PATCHING, PatchingPart
from circuits.summary import CANNOT_TELL, table_categories
from refusal.schemas import Report

MOST_BYTES = 1_900_000
"""Size of the page beyond which less of the circuits and texts is embedded."""


def html_page(
    report: Report,
    texts: Mapping[str, Texts],
    training: Mapping[tuple[str, str], str] | None = None,
    patching: PatchingPart = NO_PATCHING,
) -> str:
    """Return the page.

    Args:
        report: Everything that was found.
        texts: Prompts and responses by model; the page shows them behind a click only.
        training: By model and site, where the picture of the SAEs' training lies beside the page.
        patching: What activation patching found.
    """
    page = ""
    script = asset("report.js")
    for limits in STEPS:
        data = page_data(report, texts, limits)
        page = template("report.html.j2").render(
            report=report,
            rows={model: table_categories(report, model) for model in report.models},
            thresholds=next(iter(report.comparisons.values())).thresholds,
            training=training or {},
            directions=findings_of(report),
            data=data,
            limits=limits,
            payload=Markup(script_json(data)),
            style=Markup(asset("report.css") + asset("patching.css")),
            patching=patching,
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            configuration=_readable(report.configuration),
            cannot_tell=CANNOT_TELL,
        )
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _readable(configuration: Mapping[str, Any]) -> str:
    # Escapes of lone surrogates stay escapes: UTF-8 cannot hold them.
    text = json.dumps(configuration, indent=2, ensure_ascii=False, sort_keys=True, default=str)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

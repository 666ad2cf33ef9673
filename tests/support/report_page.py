"""The report's page as tests read it: tags, scripts, visible text; and text that tries to be markup."""

from __future__ import annotations

from html.parser import HTMLParser

from circuits.page_data import Texts
from refusal.artefacts import ResultPaths
from refusal.schemas import ModelOutputs, RefusalLabels, Report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' --> <!-- {{ 1234*5 }} \u2028\u202e&amp;"


class Page(HTMLParser):
    """Collects what matters of a page: tags with attributes, scripts, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "input", "img"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        """The visible text on one line."""
        return " ".join(" ".join(self.text).split())


def texts(paths: ResultPaths, report: Report) -> dict[str, Texts]:
    return {
        model: Texts.of(RefusalLabels.load(paths.refusal_labels(model)), ModelOutputs.load(paths.model_outputs(model)))
        for model in report.models
    }

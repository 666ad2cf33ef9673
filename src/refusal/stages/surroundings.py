"""What a record notes of a run besides its results: versions of packages, and every warning."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "scipy", "scikit-learn", "networkx", "refusal-circuits")


class _Collector(logging.Handler):
    """Keeps the text of each warning once."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text unless it is there."""
        text = record.getMessage().strip()
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that gets every warning, logged or raised by `warnings`, until the end of the block."""
    collector = _Collector([])
    root = logging.getLogger()
    root.addHandler(collector)
    logging.captureWarnings(True)
    try:
        yield collector.texts
    finally:
        logging.captureWarnings(False)
        root.removeHandler(collector)


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found

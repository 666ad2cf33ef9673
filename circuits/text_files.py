"""Write the texts and pages of a result folder."""

from __future__ import annotations

from pathlib import Path

from refusal.artefacts import atomic_write


def write_text(path: Path, text: str) -> None:
    """Write text atomically as UTF-8; what UTF-8 cannot hold (lone surrogates) becomes `?`."""
    with atomic_write(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))

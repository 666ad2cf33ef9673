"""Which library wrote an SAE, by the names of its files; nothing is opened.

A library is added by a member of `SaeFormat`, a row of `FILES` and a reader in `refusal.sae.foreign.reading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from refusal.errors import InputError
from refusal.sae.formats import CONFIG_FILE, WEIGHTS_FILE


class SaeFormat(StrEnum):
    """Who wrote an SAE; the value is the library's name."""

    SAELENS = "SAELens"
    """Also what this project writes."""
    GEMMA_SCOPE = "Gemma Scope"
    """JumpReLU SAEs of Gemma 2: one numpy archive, no configuration."""
    GEMMA_SCOPE_2 = "Gemma Scope 2"
    """JumpReLU SAEs of Gemma 3."""
    DICTIONARY_LEARNING = "dictionary_learning"
    """A pickled state dictionary; the class is named in the configuration."""
    SPARSIFY = "sparsify"
    """TopK SAEs; the folder is named after the module that they read."""


FILES: dict[str, tuple[SaeFormat, str | None]] = {
    WEIGHTS_FILE: (SaeFormat.SAELENS, CONFIG_FILE),
    "params.npz": (SaeFormat.GEMMA_SCOPE, None),
    "params.safetensors": (SaeFormat.GEMMA_SCOPE_2, "config.json"),
    "ae.pt": (SaeFormat.DICTIONARY_LEARNING, "config.json"),
    "sae.safetensors": (SaeFormat.SPARSIFY, CONFIG_FILE),
}
"""Name of a weights file -> who wrote it, and the name of the configuration beside it."""
_CHECKPOINT = re.compile(r"ae_\d+\.pt")
_SHOWN = 20


@dataclass(frozen=True)
class FoundSae:
    """An SAE on disk."""

    format: SaeFormat
    weights: Path
    """The file with the weights."""
    config: Path | None
    """The file that says how they are used, which may be missing; `None` where the format has none."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide what the SAE is."""
        return tuple(file for file in (self.weights, self.config) if file is not None and file.is_file())


def find_format(path: str | Path) -> FoundSae:
    """Return what lies at a path, judged by the names of files.

    Args:
        path: A folder with one SAE, or its weights file; `checkpoints/ae_STEP.pt` of dictionary_learning is known too.

    Raises:
        InputError: There is nothing, nothing known, or more than one SAE.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = [path.name] if path.is_file() else [name for name in FILES if (folder / name).is_file()]
    if not path.exists():
        raise InputError(f"{path}: not found; allowed is {_known()}; correct the path")
    if len(names) > 1:
        raise InputError(f"{path}: holds several SAEs ({', '.join(names)}), allowed is one; write the file's own path")
    if names and _CHECKPOINT.fullmatch(names[0]):
        above = folder.parent if folder.name == "checkpoints" else folder
        return FoundSae(SaeFormat.DICTIONARY_LEARNING, path, above / "config.json")
    if not names or names[0] not in FILES:
        raise InputError(f"{path}: no SAE is recognised; found {_listing(folder)}; allowed is {_known()}")
    found, config = FILES[names[0]]
    return FoundSae(found, folder / names[0], None if config is None else folder / config)


def _known() -> str:
    formats = (f"{name} ({file}{f' and {config}' if config else ''})" for file, (name, config) in FILES.items())
    return f"a folder or weights file of {', '.join(formats)}"


def _listing(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "an empty folder"

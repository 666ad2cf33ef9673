"""The files of a configuration that the directions stage reads: contrast sets and ordinary text.

Light: it is asked before anything loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refusal.config import Config
from refusal.config.directions import ContrastName
from refusal.directions.contrast import EMBEDDED, ContrastSet, embedded_contrast, read_contrast, read_contrast_files
from refusal.directions.text import read_paragraphs
from refusal.untrusted.text import local_path


def contrast_sets(names: Sequence[ContrastName]) -> tuple[ContrastSet, ...]:
    """Return the contrast sets that a configuration names.

    Raises:
        InputError: There is no such set, or a file is wrong.
    """
    return tuple(_contrast_set(name) for name in names)


def _contrast_set(name: ContrastName) -> ContrastSet:
    if not isinstance(name, str):
        return read_contrast_files(*map(local_path, name))
    is_file = name not in EMBEDDED and (Path(name).suffix or "/" in name)
    return read_contrast(local_path(name)) if is_file else embedded_contrast(name)


def contrast_paths(names: Sequence[ContrastName]) -> tuple[Path, ...]:
    """Return the files that contrast sets are read from, without those that ship with the package."""
    flat = [each for name in names for each in ((name,) if isinstance(name, str) else name)]
    return tuple(local_path(each) for each in flat if each not in EMBEDDED)


def outside_files(config: Config) -> tuple[Path, ...]:
    """Return the files of the configuration that the stage reads: texts and contrast sets."""
    text_file = config.directions.text_file
    return (*(() if text_file is None else (text_file,)), *contrast_paths(config.directions.contrasts))


def check_files(config: Config) -> None:
    """Raise if a file that the stage reads is missing or wrong; before a model loads.

    Raises:
        InputError: Names the file and what is wrong with it.
    """
    contrast_sets(config.directions.contrasts)
    if config.directions.text_file is not None:
        read_paragraphs(config.directions.text_file)

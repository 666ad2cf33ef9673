"""What can be wrong with the `patching` section is said before any model loads."""

from __future__ import annotations

import difflib
from pathlib import Path

from refusal.config import Config
from refusal.config.patching import SOURCES
from refusal.errors import InputError
from refusal.patching.directions import check_direction
from refusal.patching.pair_files import read_pairs


def check_patching(config: Config) -> None:
    """Raise if the pairs, the direction or the models to compare cannot be what they are said to be.

    Raises:
        InputError: All that was found.
    """
    settings = config.patching
    found = [_of_models(config, name) for pair in settings.compare for name in pair if name not in config.models]
    for check in (_check_pairs, check_direction):
        try:
            check(config)
        except InputError as error:
            found.append(str(error))
    if found:
        raise InputError("\n".join(found))


def _check_pairs(config: Config) -> None:
    if config.patching.pairs not in SOURCES:
        read_pairs(Path(config.patching.pairs)).require()


def _of_models(config: Config, name: str) -> str:
    near = difflib.get_close_matches(name, config.models, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(config.models)
    return f"patching.compare: found {name!r}, which is not among models ({known}); name it there too{hint}"

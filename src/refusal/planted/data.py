"""The OR-Bench-shaped files of a planted model: safe, hard and toxic prompts by category."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from refusal.artefacts import atomic_write
from refusal.planted.language import Language, language
from refusal.planted.worlds import N_INTENTS, World
from refusal.prompts import CATEGORIES

FILES = {"80k": "or-bench-80k.csv", "hard-1k": "or-bench-hard-1k.csv", "toxic": "or-bench-toxic.csv"}
ROWS = {"80k": 130, "hard-1k": 30, "toxic": 130}
"""Rows of each file per category."""
REFUSED_SHARE = {"hard-1k": 0.3, "toxic": 0.96}
"""Share of refused pairs in each file: files and behaviour differ, so over-refusal can be measured. That of the safe
file is the world's."""


def language_of(world: World) -> Language:
    """Return the language of a world's prompts."""
    return language(world.vocabulary, world.common_share)


def write_files(world: World, folder: Path, draw: int = 0) -> None:
    """Write the three OR-Bench-shaped files (columns prompt, category); no prompt stands in two of them.

    Args:
        world: Decides the words, and which pairs are refused.
        folder: Where to.
        draw: Another number draws other prompts of the same world.
    """
    generator = np.random.default_rng([world.data_seed, 12, draw] if draw else [world.data_seed, 12])
    used: set[str] = set()
    for source, file_name in FILES.items():
        share = REFUSED_SHARE.get(source, world.over_refusal)
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(["prompt", "category"])
        for category in CATEGORIES:
            for row in range(ROWS[source]):
                refused = row < round(share * ROWS[source])
                table.writerow([_fresh(world, category, refused, generator, used), category])
        with atomic_write(folder / file_name) as beside:
            beside.write_text(lines.getvalue(), encoding="utf-8")


def _fresh(world: World, category: str, refused: bool, generator: np.random.Generator, used: set[str]) -> str:
    intents = [intent for intent in range(N_INTENTS) if world.is_refused(category, intent) == refused]
    while True:
        prompt = language_of(world).prompt(generator, category, intents[int(generator.integers(len(intents)))])
        if prompt.text not in used:
            used.add(prompt.text)
            return prompt.text

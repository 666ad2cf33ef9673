"""Draw balanced samples: per category, half safe and half toxic prompts.

The draw depends on the seed and on the prompts, never on the order of rows in a file, and small draws are contained in
large ones.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from refusal.errors import InputError
from refusal.prompts.records import (
    DatasetLabel,
    Draw,
    Prompt,
    PromptPool,
    PromptSource,
    normalise_category,
    order_categories,
)


def _permuted(prompts: Sequence[Prompt], seed: int, category: str, source: PromptSource) -> list[Prompt]:
    """Return the prompts in an order that depends on seed, category, source and ids only."""
    generator = np.random.default_rng([seed, *f"{category}/{source.value}".encode()])
    by_id = sorted(prompts, key=lambda prompt: prompt.id)
    return [by_id[index] for index in generator.permutation(len(by_id))]


def _alternate(first: Sequence[Prompt], second: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for pair in zip_longest(first, second) for prompt in pair if prompt is not None]


def _draw_category(
    prompts: Sequence[Prompt], category: str, n: int, seed: int
) -> tuple[list[Prompt], dict[DatasetLabel, str]]:
    """Return one category's draw, toxic and safe in turn, and for each side that is short what there is."""
    ordered = {
        source: _permuted([prompt for prompt in prompts if prompt.source is source], seed, category, source)
        for source in PromptSource
    }
    wanted = {DatasetLabel.SAFE: n // 2, DatasetLabel.TOXIC: n - n // 2}
    safe = _alternate(ordered[PromptSource.SAFE_80K], ordered[PromptSource.HARD_1K])
    taken = {
        DatasetLabel.SAFE: safe[: wanted[DatasetLabel.SAFE]],
        DatasetLabel.TOXIC: ordered[PromptSource.TOXIC][: wanted[DatasetLabel.TOXIC]],
    }
    short = {
        label: f"{len(taken[label])} of {wanted[label]} {label} prompts"
        for label in DatasetLabel
        if len(taken[label]) < wanted[label]
    }
    return _alternate(taken[DatasetLabel.TOXIC], taken[DatasetLabel.SAFE]), short


def _short_notices(short: dict[str, dict[DatasetLabel, str]], present: set[DatasetLabel]) -> list[str]:
    """Return one notice per short category; a side that no category has is said once."""
    notices = [
        f"no category drawn has a {label} prompt: the draw has the other side only"
        for label in DatasetLabel
        if label not in present
    ]
    for category, sides in short.items():
        numbers = [text for label, text in sides.items() if label in present]
        if numbers:
            notices.append(f"category {category}: only {' and '.join(numbers)}; the other side is not topped up")
    return notices


def _choose(prompts: PromptPool | Sequence[Prompt], categories: str | Sequence[str]) -> tuple[str, ...]:
    present = order_categories({prompt.category for prompt in prompts})
    if isinstance(categories, str) and categories != "all":
        categories = (categories,)
    if isinstance(categories, str):
        return present
    asked = tuple(dict.fromkeys(normalise_category(name) for name in categories))
    origin = f" in {prompts.origin}" if isinstance(prompts, PromptPool) else ""
    findings = []
    for name in asked:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            findings.append(
                f"categories: no prompt{origin} has category {name!r}; allowed are {', '.join(present)}{hint}"
            )
    if not asked:
        findings.append(f"categories: the list is empty; allowed are all, or names among {', '.join(present)}")
    if findings:
        raise InputError("\n".join(findings))
    return asked


_NOTHING_DRAWN = (
    "num_samples_per_category: found 1, with which no prompt is drawn: the odd one is toxic, and there are only safe "
    "ones; allowed are whole numbers from 2 here"
)


def _check_at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{key}: found {value}; allowed are whole numbers from {least}")


def draw(
    prompts: PromptPool | Sequence[Prompt],
    categories: str | Sequence[str],
    n_per_category: int,
    *,
    seed: int,
    shuffle: bool = True,
) -> Draw:
    """Return a balanced draw: per category half safe, half toxic (the odd one toxic), fixed by the seed.

    Each side of a category is a prefix of one seeded permutation, so a draw of 20 is contained in a draw of 100. With
    `both` safe files the safe side takes from them in turn. A side that has too few prompts is taken whole and the
    other side is NOT topped up; a notice gives the numbers. Row order in the files never matters.

    Args:
        prompts: What `load_prompts` returned, or any prompts.
        categories: `all`, or names; they are normalised, and repeated ones count once.
        n_per_category: Prompts per category, at least 1.
        seed: Not negative.
        shuffle: True orders the whole draw by a hash of seed and id; False keeps it category by category, toxic and
            safe in turn, so that a category's smaller draw is a prefix of its larger one.

    Raises:
        InputError: A category that no prompt has, an empty list, or a number out of range.
    """
    _check_at_least("num_samples_per_category", n_per_category, 1)
    _check_at_least("seed", seed, 0)
    drawn: list[Prompt] = []
    notices = list(prompts.notices) if isinstance(prompts, PromptPool) else []
    short: dict[str, dict[DatasetLabel, str]] = {}
    for category in _choose(prompts, categories):
        members = [prompt for prompt in prompts if prompt.category == category]
        taken, short[category] = _draw_category(members, category, n_per_category, seed)
        drawn += taken
    notices += _short_notices(short, {prompt.dataset_label for prompt in prompts if prompt.category in short})
    if not drawn:
        raise InputError(_NOTHING_DRAWN)
    if shuffle:
        drawn.sort(key=lambda prompt: hashlib.sha256(f"{seed}/{prompt.id}".encode()).digest())
    return Draw(tuple(drawn), tuple(notices))

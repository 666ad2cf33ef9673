"""Prompts of a data set as records: where each comes from, its category in one spelling, its id."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

CATEGORIES = (
    "deception",
    "harassment",
    "harmful",
    "hate",
    "illegal",
    "privacy",
    "self-harm",
    "sexual",
    "unethical",
    "violence",
)
"""The categories of OR-Bench. Other data sets may have others."""


class DatasetLabel(StrEnum):
    """Which kind of file a prompt came from; not what a model did with it."""

    SAFE = "safe"
    """The authors of the data set hold that it should be answered."""
    TOXIC = "toxic"
    """The authors of the data set hold that it should be refused."""


class PromptSource(StrEnum):
    """The file a prompt came from."""

    SAFE_80K = "80k"
    """`or-bench-80k.csv`: safe prompts."""
    HARD_1K = "hard-1k"
    """`or-bench-hard-1k.csv`: safe prompts that several models refused."""
    TOXIC = "toxic"
    """`or-bench-toxic.csv`: toxic prompts."""

    @property
    def dataset_label(self) -> DatasetLabel:
        """The label that every prompt of this file carries."""
        return DatasetLabel.TOXIC if self is PromptSource.TOXIC else DatasetLabel.SAFE

    @property
    def subset(self) -> str:
        """The name of the hub subset, which is also the file name without `.csv`."""
        return f"or-bench-{self.value}"

    @property
    def file_name(self) -> str:
        """The name of the CSV file."""
        return f"{self.subset}.csv"


@dataclass(frozen=True)
class Prompt:
    """One prompt of the data set."""

    id: str
    """16 hexadecimal digits, derived from source, category and text: the same in every run and row order."""
    text: str
    """What the user says, exactly as in the file."""
    category: str
    """Normalised: lower case, words joined by `-`."""
    dataset_label: DatasetLabel
    """Which kind of file it came from."""
    source: PromptSource
    """The file it came from."""


@dataclass(frozen=True)
class PromptPool:
    """Every usable prompt of a data set, in order of id."""

    prompts: tuple[Prompt, ...]
    notices: tuple[str, ...]
    """What a user should know about the files: missing ones, duplicates, rows left out."""
    origin: str
    """Where the prompts came from, for messages."""

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Draw:
    """The prompts of a run."""

    prompts: tuple[Prompt, ...]
    notices: tuple[str, ...]
    """The notices of the pool, then one for each category that is short of prompts."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories drawn, in the order of `order_categories`."""
        return order_categories({prompt.category for prompt in self.prompts})


def normalise_category(name: str) -> str:
    """Return a category name in the one spelling used everywhere, without what steers a terminal or a line of text.

    >>> normalise_category(" Self_Harm "), normalise_category("self  harm")
    ('self-harm', 'self-harm')
    """
    # white space first: tabs and line breaks are control characters too
    spaced = re.sub(r"\s", "-", name.lower())
    shown = "".join(letter for letter in spaced if unicodedata.category(letter) not in ("Cc", "Cf", "Cs"))
    return re.sub(r"[_-]+", "-", shown).strip("-")


def prompt_id(source: PromptSource, category: str, text: str) -> str:
    """Return the id of a prompt: 16 hexadecimal digits of the SHA-256 of source, category and text."""
    content = json.dumps([source.value, category, text], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def order_categories(names: Iterable[str]) -> tuple[str, ...]:
    """Return categories in the order used everywhere: those of OR-Bench by name, then others by name."""
    found = set(names)
    return tuple(name for name in CATEGORIES if name in found) + tuple(sorted(found - set(CATEGORIES)))

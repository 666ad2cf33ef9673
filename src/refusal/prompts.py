"""Load OR-Bench-shaped prompts and draw balanced samples of them.

1. `load_prompts` reads the files of a data set (shipped, a local folder, or the hub) into a `PromptPool`: categories
   normalised, ids derived from content, duplicates collapsed. Whatever is missing or odd and can be coped with becomes
   a notice; whatever cannot be becomes an `InputError`.
2. `draw` takes, per category, half safe and half toxic prompts. The draw depends on the seed and on the prompts, never
   on the order of rows in a file, and small draws are contained in large ones.

This module does not know what a model does with a prompt: `dataset_label` says which file a prompt came from, nothing
more. Source: OR-Bench, Cui et al. arXiv 2405.20947.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path

import numpy as np

from refusal.errors import InputError
from refusal.prompt_files import Row, dataset_folder, read_csv, read_hub

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


_SOURCES = {
    "80k": (PromptSource.SAFE_80K, PromptSource.TOXIC),
    "hard-1k": (PromptSource.HARD_1K, PromptSource.TOXIC),
    "both": (PromptSource.SAFE_80K, PromptSource.HARD_1K, PromptSource.TOXIC),
}


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


# Reading -------------------------------------------------------------------------------------------------------------


def local_files(dataset_dir: str, safe_subset: str) -> tuple[Path, ...]:
    """Return the existing CSV files that a run reads, for hashing; empty for a hub id.

    Raises:
        InputError: `dataset_dir` or `safe_subset` means nothing.
    """
    folder = dataset_folder(dataset_dir)
    if folder is None:
        return ()
    paths = (folder / source.file_name for source in _wanted(safe_subset))
    return tuple(path for path in paths if path.exists())


def _wanted(safe_subset: str) -> tuple[PromptSource, ...]:
    if safe_subset not in _SOURCES:
        near = difflib.get_close_matches(safe_subset, _SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"safe_subset: found {safe_subset!r}; allowed are {', '.join(_SOURCES)}{hint}")
    return _SOURCES[safe_subset]


def load_prompts(dataset_dir: str, safe_subset: str = "80k") -> PromptPool:
    """Return every usable prompt of a data set.

    A file that is missing is coped with and said in the notices, as long as another one has prompts.

    Args:
        dataset_dir: `embedded`, a folder with `or-bench-*.csv`, or a hub id with optional `@revision`.
        safe_subset: Which safe prompts: `80k`, `hard-1k` or `both`.

    Raises:
        InputError: Nothing usable is there, or a file is unreadable, malformed, not UTF-8 or lacks a column.
    """
    wanted = _wanted(safe_subset)
    folder = dataset_folder(dataset_dir)
    found: dict[PromptSource, list[Row]] = {}
    notices: list[str] = []
    for source in wanted:
        path = None if folder is None else folder / source.file_name
        rows = read_hub(dataset_dir, source.subset) if path is None else read_csv(path) if path.exists() else None
        where = str(path) if path else f"{dataset_dir} ({source.subset})"
        if rows is None:
            notices.append(f"{where}: not found; the run has no {source.dataset_label} prompts from it")
        else:
            found[source] = rows
            if not rows:
                notices.append(f"{where}: holds no rows")
    prompts, row_notices = _clean(found)
    if not prompts:
        raise InputError(_nothing_usable(dataset_dir, folder, wanted, notices + row_notices))
    return PromptPool(tuple(prompts), tuple(notices + row_notices), dataset_dir)


def _nothing_usable(
    dataset_dir: str, folder: Path | None, wanted: Sequence[PromptSource], notices: Sequence[str]
) -> str:
    others = [] if folder is None else [s for s in PromptSource if s not in wanted and (folder / s.file_name).exists()]
    hint = "".join(f"; {source.file_name} is there: set safe_subset: {source.value}" for source in others)
    return (
        f"dataset_dir: {dataset_dir!r} holds no usable prompt ({'; '.join(notices)}); needed is at least one of "
        f"{', '.join(source.file_name for source in wanted)} with columns prompt and category; download them with: "
        f"hf download bench-llm/or-bench --repo-type dataset --local-dir DIR{hint}"
    )


def _clean(found: dict[PromptSource, list[Row]]) -> tuple[list[Prompt], list[str]]:
    """Return the prompts in order of id, and what was left out and why."""
    by_id: dict[str, Prompt] = {}
    notices: list[str] = []
    for source, rows in found.items():
        left_out: Counter[str] = Counter()
        for row in rows:
            category = normalise_category(row.category)
            if not row.prompt.strip() or not category:
                left_out["without a prompt" if category else "without a category"] += 1
                continue
            key = prompt_id(source, category, row.prompt)
            left_out["that repeat another row"] += key in by_id
            by_id[key] = Prompt(key, row.prompt, category, source.dataset_label, source)
        notices += [f"{source.file_name}: left out {n} rows {why}" for why, n in left_out.items() if n]
    kept, overlap = _resolve_overlap(by_id.values())
    return sorted(kept, key=lambda prompt: prompt.id), notices + overlap


def _resolve_overlap(prompts: Iterable[Prompt]) -> tuple[list[Prompt], list[str]]:
    """Drop texts that are both safe and toxic, and the 80k copy of a hard-1k prompt; say what shares a text."""
    by_text: defaultdict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_text[prompt.text].append(prompt)
    kept: list[Prompt] = []
    counts: Counter[str] = Counter()
    for same in by_text.values():
        if len({prompt.dataset_label for prompt in same}) > 1:
            counts["texts are in a safe and in a toxic file; left out"] += 1
            continue
        hard = [prompt for prompt in same if prompt.source is PromptSource.HARD_1K]
        if 0 < len(hard) < len(same):
            counts["texts are in or-bench-80k.csv and in or-bench-hard-1k.csv; counted as hard-1k"] += 1
        rest = hard or same
        if len(rest) > 1:
            counts["texts stand in several categories; kept in each, which makes these look alike"] += 1
        kept += rest
    return kept, [f"{n} {what}" for what, n in counts.items()]


# Drawing -------------------------------------------------------------------------------------------------------------


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

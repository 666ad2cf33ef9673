"""Read the files of an OR-Bench-shaped data set: a strict CSV reader, a folder or the hub.

This module knows columns and encodings, not what the rows mean: `refusal.prompts` does. A CSV file has columns `prompt`
and `category` (others are ignored) and is UTF-8, with or without byte order mark; prompts may hold anything when quoted
as RFC 4180 says. What cannot be read is an `InputError` with file and line, never a row guessed or dropped.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusal.errors import InputError
from refusal.prompts import embedded
from refusal.untrusted.text_files import read_text

EMBEDDED = "embedded"
"""The `dataset_dir` that means the prompts that ship with the package."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_COLUMNS = ("prompt", "category")
_MAX_PROMPT_CHARACTERS = 10_000_000
_MAX_CATEGORY_CHARACTERS = 200
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Row:
    """A row as read: nothing checked yet but the columns."""

    prompt: str
    category: str


def _column_positions(header: Sequence[str], where: str) -> tuple[int, ...]:
    names = [name.strip().lower() for name in header]
    positions = []
    for column in _COLUMNS:
        count = names.count(column)
        if count != 1:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"; rename column {near[0]!r}?" if near and not count else ""
            found = "no column" if not count else f"{count} columns"
            raise InputError(
                f"{where}: found {found} {column!r} among {', '.join(map(repr, header)) or 'no columns'}; allowed is "
                f"one column each of prompt and category, others are ignored{hint}"
            )
        positions.append(names.index(column))
    return tuple(positions)


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a CSV file with columns `prompt` and `category`, in file order.

    Prompts may hold commas, quotes and line breaks when quoted as RFC 4180 says; other columns are ignored. A row with
    more fields than the header is an error, because it is most likely an unquoted comma that moved the category.

    Raises:
        InputError: The file cannot be read, is not UTF-8, lacks a column or is malformed; names file and line.
    """
    text = read_text(path, _MAX_FILE_BYTES, allowed="a readable CSV file")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    previous_limit = csv.field_size_limit(_MAX_PROMPT_CHARACTERS)
    line = 1
    rows: list[Row] = []
    try:
        header = next(reader, [])
        at_prompt, at_category = _column_positions(header, f"{path}:1")
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                padded = _fields(fields, len(header), f"{path}:{line}")
                _check_category(padded[at_category], f"{path}:{line}")
                rows.append(Row(padded[at_prompt], padded[at_category]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{line}: found malformed CSV in the row that begins here ({error}); allowed are fields quoted as "
            '"..." with inner quotes doubled (""); mend this row'
        ) from error
    finally:
        csv.field_size_limit(previous_limit)
    return rows


def _fields(fields: list[str], n_columns: int, where: str) -> list[str]:
    """Return the fields of a row, the missing ones empty."""
    if len(fields) > n_columns:
        raise InputError(
            f"{where}: found {len(fields)} fields, the header has {n_columns}; allowed is one field per column; write "
            'prompts that hold commas or line breaks as "..."'
        )
    return [*fields, *[""] * (n_columns - len(fields))]


def _check_category(category: str, where: str) -> None:
    if len(category) > _MAX_CATEGORY_CHARACTERS:
        raise InputError(
            f"{where}: found a category of {len(category)} characters, {category[:40]!r}...; allowed are at most "
            f"{_MAX_CATEGORY_CHARACTERS}; are the columns in the order of the header?"
        )


def read_hub(name: str, subset: str) -> list[Row] | None:
    """Return the rows of one subset of a hub data set, None when the data set has no such subset."""
    import datasets

    repository, _, revision = name.partition("@")
    try:
        table = datasets.load_dataset(repository, subset, split="train", revision=revision or None)
    except ValueError as error:
        if "BuilderConfig" in str(error):
            return None
        raise InputError(_unreachable(name, error)) from error
    except OSError as error:  # offline, unknown name, no permission: all are OSError in datasets and huggingface_hub
        raise InputError(_unreachable(name, error)) from error
    at_prompt, at_category = _column_positions(table.column_names, f"{name} ({subset})")
    prompts, categories = (table[table.column_names[at]] for at in (at_prompt, at_category))
    return [Row(text or "", category or "") for text, category in zip(prompts, categories, strict=True)]


def _unreachable(name: str, error: Exception) -> str:
    repository = name.partition("@")[0]
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    near = [EMBEDDED] if difflib.get_close_matches(name, [EMBEDDED], n=1) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"dataset_dir: {name!r} is no folder here and could not be loaded from the hub ({first_line}); allowed are "
        f"{EMBEDDED}, a folder with or-bench-*.csv files, or a hub id; where there is network, run: hf download "
        f"{repository} --repo-type dataset --local-dir DIR, then set dataset_dir: DIR{hint}"
    )


def dataset_folder(dataset_dir: str) -> Path | None:
    """Return the local folder that `dataset_dir` means, None for a hub id.

    Raises:
        InputError: It is neither `embedded`, nor a folder, nor could it be a hub id.
    """
    if dataset_dir == EMBEDDED:
        return embedded.data_dir()
    path = Path(dataset_dir).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _HUB_ID.fullmatch(dataset_dir):
        what = "is a file, not a folder" if path.exists() else "does not exist"
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, [*siblings, EMBEDDED], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"dataset_dir: {dataset_dir!r} {what}; allowed are {EMBEDDED}, a folder with or-bench-80k.csv, "
            f"or-bench-hard-1k.csv and or-bench-toxic.csv, or a hub id such as bench-llm/or-bench{hint}"
        )
    return None

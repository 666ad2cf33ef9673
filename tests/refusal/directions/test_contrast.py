"""Contrast sets: every format round-trips, and whatever is wrong with a file is told with its place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refusal.directions.contrast import EMBEDDED, embedded_contrast, read_contrast, read_contrast_files
from refusal.errors import InputError

GOOD = [{"text": f"{word} number {i}", "label": label} for i in range(4) for word, label in (("a", "-"), ("b", "0"))]


def as_csv(records) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["text", "label"])
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_shipped_sets_are_balanced_and_hold_no_text_twice(name: str) -> None:
    found = embedded_contrast(name)
    assert (found.n_positive, found.n_negative) == (40, 40)
    assert len(set(found.texts)) == 80
    assert (found.positive, found.negative) == tuple(name.split("_"))
    assert found.notices == ()


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean negative_neutral"):
        embedded_contrast("negativ_neutral")


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=8, max_size=12, unique=True), st.booleans())
def test_every_format_gives_the_same_set(tmp_path: Path, some: list[str], has_mark: bool) -> None:
    records = [{"text": text, "label": "b" if i % 2 else "a"} for i, text in enumerate(some)]
    by_label = {label: [each["text"] for each in records if each["label"] == label] for label in ("a", "b")}
    mark = "\ufeff" if has_mark else ""
    files = {
        "list.json": json.dumps(records),
        "object.json": json.dumps(by_label),
        "lines.jsonl": "\n".join(json.dumps(record) for record in records),
        "rows.csv": as_csv(records),
    }
    for name, content in files.items():
        found = read_contrast(written(tmp_path, name, mark + content))
        assert set(found.texts) == set(some), name
        positive = {text for text, first in zip(found.texts, found.is_positive, strict=True) if first}
        assert positive == set(by_label["a"]), name
        turned = read_contrast(tmp_path / name, positive="b")
        np.testing.assert_array_equal(turned.is_positive, ~found.is_positive)
    two = [written(tmp_path, f"{label}.json", json.dumps(by_label[label])) for label in ("a", "b")]
    found = read_contrast_files(*two)
    assert (found.positive, found.negative, set(found.texts)) == ("a", "b", set(some))


def test_two_text_files_are_two_classes(tmp_path: Path) -> None:
    first = written(tmp_path, "sad.txt", "one\n\n two \nthree\nfour\r\n")
    second = written(tmp_path, "plain.csv", "Prompt,other\nfive,x\nsix,x\nseven,x\neight,x\n")
    found = read_contrast_files(first, second)
    assert found.texts == ("one", "two", "three", "four", "five", "six", "seven", "eight")
    assert (found.positive, found.negative, found.n_positive) == ("sad", "plain", 4)


def test_a_text_that_stands_twice_is_used_once_and_told(tmp_path: Path) -> None:
    found = read_contrast(written(tmp_path, "twice.csv", as_csv([*GOOD, GOOD[0]])))
    assert len(found.texts) == 8
    assert found.notices == ("contrast twice: 1 texts stand more than once and are used once",)


BAD = {
    "no_such.csv": (None, "cannot be read .No such file"),
    "set.xlsx": ("x", "ends in '.xlsx'; allowed are .csv, .json, .jsonl"),
    "set.txt": ("x", "ends in '.txt'"),
    "nul.csv": ("text,label\na\0b,x\n", ":2: found a NUL byte"),
    "latin.csv": (b"text,label\nna\xefve,x\n", ":2: found byte 0xef, which is not UTF-8"),
    "empty.csv": ("", ":1: found columns none"),
    "header.csv": ("text,label\n", "holds no texts"),
    "columns.csv": ("words,label\na,b\n", "found columns 'words', 'label'; needed is one of text"),
    "twice.csv": ("text,text,label\na,b,c\n", "each once"),
    "fields.csv": ("text,label\na, b,c\n", ":2: found more fields than the 2 of the header"),
    "quotes.csv": ('text,label\n"a"b,c\n', "malformed CSV"),
    "one.csv": (as_csv([{"text": f"t{i}", "label": "same"} for i in range(9)]), "found 1 labels .'same'.; a contrast"),
    "three.csv": (as_csv([*GOOD, {"text": "x", "label": "third"}]), "found 3 labels"),
    "few.csv": (as_csv(GOOD[:6]), "found 3 different texts of '-'; at least 4"),
    "both.csv": (as_csv([*GOOD, {**GOOD[0], "label": "0"}]), r":10: the text stands as '-' too, at .*both.csv:2"),
    "blank.csv": (as_csv([*GOOD, {"text": "  ", "label": "0"}]), ":10: the text is empty"),
    "unlabelled.csv": (as_csv([*GOOD, {"text": "x", "label": ""}]), ":10: the label is empty"),
    "broken.json": ('[{"text": "a"', "not readable as JSON"),
    "deep.json": ("[" * 100_000, "not readable as JSON"),
    "digits.json": ("[" + "1" * 5000 + "]", "not readable as JSON"),
    "number.json": ("7", "found a int; allowed are a list"),
    "object.json": ('{"a": "b"}', "an object whose values are not lists"),
    "nothing.json": ("[]", "holds no texts"),
    "types.json": ('[{"text": 3, "label": "a"}, 7]', "entry 1: the text is a int, not text"),
    "strings.json": ('["a", "b"]', "entry 1: the label is missing"),
    "half.json": ('[{"text": "\\ud800", "label": "a"}]', "half of a surrogate pair"),
    "listed.jsonl": ('{"text": "a", "label": ["x"]}\n', ":1: the label is a list, not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_says_where_and_what(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        read_contrast(path)


def test_a_folder_and_the_same_file_twice_are_errors(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot be read .Is a directory"):
        read_contrast(tmp_path / "folder.csv")
    path = written(tmp_path, "one.txt", "a\nb\n")
    with pytest.raises(InputError, match="given for both classes"):
        read_contrast_files(path, tmp_path / "." / "one.txt")


def test_a_class_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text is labelled 'zero'; labels are -, 0"):
        read_contrast(written(tmp_path, "set.csv", as_csv(GOOD)), positive="zero")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".csv", ".json", ".jsonl"]))
def test_any_bytes_give_a_set_or_an_input_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = written(tmp_path, f"any{suffix}", content)
    try:
        found = read_contrast(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert found.n_positive >= 4

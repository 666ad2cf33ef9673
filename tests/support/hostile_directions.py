"""Hostile inputs of the directions and patching jobs: contrast sets, pairs, and folders of published directions.

As in `hostile_corpus`: half made by hand, half good inputs changed at random, the same for the same seed. Code that is
hidden in them does nothing but leave a file behind.
"""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_corpus import json_files, mutated
from hypothesis import strategies as st
from torch import Tensor

TEXTS = tuple(f"tell me, please, about {word}" for word in ("tea", "rain", "bread", "chess", "maps", "wool", "salt"))
DEEP = "[" * 50_000
HALF = "\\ud800"
CONTROL = "\\u0000\\u001b[2J"
HUGE = "1" * 5000
_KEYS = st.sampled_from(("pos", "layer", "position", "refusal_score", "clean", "corrupted", "id", "category", "text"))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=6),
    max_leaves=12,
)
"""Any JSON, often with keys that mean something."""


class _Leaves:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


def saved(content: Any, *, as_archive: bool = True) -> bytes:
    """Return what torch.save writes."""
    handle = io.BytesIO()
    torch.save(content, handle, _use_new_zipfile_serialization=as_archive)
    return handle.getvalue()


def tensor_files(good: Tensor, name: str, escaped: Path, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield files in the place of a tensor: code, other things, wrong shapes and numbers, changes of a good one.

    Args:
        good: The tensor that belongs there.
        name: Its file.
        escaped: A file that code in them would leave behind.
        seed: Of the changes.
        n: Changed ones.
    """
    generator = random.Random(f"{name} {seed}")
    shape = tuple(good.shape)
    spoilt = {
        "code": _Leaves(escaped),
        "code in a dictionary": {"direction": _Leaves(escaped)},
        "nothing": None,
        "text": "x" * 5000,
        "dictionary": {"direction": good},
        "list": [good],
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "one dimension more": good[None],
        "one number more": torch.ones([size + 1 for size in shape]),
        "whole numbers": good.long(),
        "truth values": good > 0,
        "complex": good.to(torch.complex64),
        "nan": torch.full(shape, torch.nan),
        "infinite": torch.full(shape, torch.inf),
        "zeros": torch.zeros(shape),
        "nearly zero": torch.full(shape, 5e-324, dtype=torch.float64),
        "nearly infinite": torch.full(shape, 1.7e308, dtype=torch.float64),
        "half": good.half(),
        "eight bits": good.to(torch.float8_e4m3fn),
        "with gradient": good.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(good.clone()),
        "sparse": good.to_sparse(),
        "nowhere": good.to("meta"),
        "repeated a trillion times": torch.ones(1).expand([10 ** (12 // len(shape))] * len(shape)),
        "long": torch.ones([*[1] * (len(shape) - 1), 200_000]),
        "many layers": torch.ones([1, 200_000, 1][-len(shape) :] if len(shape) > 1 else [200_000]),
        "many positions": torch.ones([200_000, *[1] * (len(shape) - 1)]),
    }
    for what, content in spoilt.items():
        yield what, saved(content)
    whole = saved(good)
    yield "before 2020", saved(good, as_archive=False)
    yield "code before 2020", saved(_Leaves(escaped), as_archive=False)
    yield "pickled code", pickle.dumps(_Leaves(escaped))
    yield "empty file", b""
    yield "beginning of an archive", b"PK\x03\x04"
    yield "cut off", whole[: len(whole) // 2]
    for number in range(n):
        yield f"changed {number}", mutated(whole, generator)


METADATA = {"pos": -1, "layer": 1}
_INDICES = (None, True, -1, 0, 3, 4, 1.0, 10**60, "1", "../../x", [1], {"a": 1}, "x" * 200_000)


def metadata_files(seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield metadata of a published direction."""
    yield from json_files(METADATA, "metadata", seed, n)
    for key in METADATA:
        for number, value in enumerate(_INDICES):
            yield f"{key} {number}", json.dumps(METADATA | {key: value}).encode()
    yield "more keys", json.dumps(METADATA | {"../../x": "../../x", "": None}).encode()


def evaluation_files(n_layers: int, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield scores of published candidates."""
    good = [
        {"position": -1, "layer": layer, "refusal_score": -layer, "steering_score": 1.0, "kl_div_score": 0.0}
        for layer in range(n_layers)
    ]
    yield from json_files(good, "evaluations", seed, n)
    for key in good[0]:
        for number, value in enumerate((*_INDICES, float("nan"), float("inf"), 10**400)):
            yield f"{key} {number}", json.dumps([each | {key: value} for each in good]).encode()


def contrast_files(seed: int, n: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, suffix, content) of files with two classes of texts."""
    generator = random.Random(f"contrasts {seed}")
    good = [{"text": f"{text} {label}", "label": label} for label in ("warm", "cold") for text in TEXTS]
    table = "text,label\n" + "".join(f'"{each["text"]}",{each["label"]}\n' for each in good)
    lines = "\n".join(map(json.dumps, good))
    for name, content in json_files(good, "contrasts", seed, n):
        yield name, ".json", content
    for suffix, text in ((".csv", table), (".jsonl", lines)):
        yield "good", suffix, text.encode()
        for number in range(n):
            yield f"changed {number}", suffix, mutated(text.encode(), generator)
    by_label = {label: [each["text"] for each in good if each["label"] == label] for label in ("warm", "cold")}
    raw: tuple[tuple[str, str], ...] = (
        (".csv", "text,label\n\x00,warm"),
        (".csv", "text,label\na,b,c,d"),
        (".csv", "text,label,text\na,b,c"),
        (".csv", 'text,label\n"a'),
        (".csv", "text,label\n" + "x" * 2_000_000 + ",warm"),
        (".csv", table.replace("warm", "../../../escaped")),
        (".csv", table.replace("warm", "$x^$ \x1b[2J" + "y" * 90_000)),
        (".csv", "text,label\n" + "".join(f"text {number},{'wc'[number % 2]}\n" for number in range(30_000))),
        (".jsonl", DEEP),
        (".jsonl", '{"text": "a", "label": ' + HUGE + "}"),
        (".jsonl", lines + f'\n{{"text": "{HALF}", "label": "warm"}}'),
        (".jsonl", lines.replace("warm", HALF)),
        (".jsonl", lines.replace("warm", CONTROL)),
        (".json", json.dumps(by_label)),
        (".json", json.dumps(by_label | {"third": []})),
        (".json", json.dumps({"../../x": by_label["warm"], "": by_label["cold"]})),
        (".json", json.dumps({"warm": {"a": 1}, "cold": 5})),
        (".json", json.dumps({"warm": [["a"]] * 9, "cold": [None] * 9})),
        (".txt", "\n".join(TEXTS)),
        (".xlsx", "PK\x03\x04"),
        ("", table),
    )
    for number, (suffix, text) in enumerate(raw):
        yield f"raw {number}", suffix, text.encode()


PAIRS = tuple(
    {"clean": f"{text} loudly", "corrupted": f"{text} softly", "id": f"p{number}", "category": "noise"}
    for number, text in enumerate(TEXTS)
)


def _row(fields: list[str]) -> str:
    return ",".join(f'"{field}"' for field in fields) + "\n"


def pair_files(seed: int, n: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, suffix, content) of files with contrast pairs."""
    generator = random.Random(f"pairs {seed}")
    table = "clean,corrupted,id,category\n" + "".join(_row(list(pair.values())) for pair in PAIRS)
    for name, content in json_files(list(PAIRS), "pairs", seed, n):
        yield name, ".json", content
    yield "good", ".csv", table.encode()
    for number in range(n):
        yield f"changed {number}", ".csv", mutated(table.encode(), generator)
    for key in PAIRS[0]:
        for number, text in enumerate((HALF, CONTROL, "../../../escaped", "x" * 200_000, "")):
            content = json.dumps(PAIRS).replace(f'"{key}": "', f'"{key}": "{text}')
            yield f"{key} begins with {number}", ".json", content.encode()
        for number, value in enumerate((None, True, 5, 1e308, [], {"a": [1]}, ["x" * 200_000], float("nan"))):
            yield f"{key} is {number}", ".json", json.dumps([each | {key: value} for each in PAIRS]).encode()
    raw = (
        "clean,corrupted\na,b,c,d",
        "clean,corrupted,clean\na,b,c",
        "clean;corrupted\na;b",
        'clean,corrupted\n"a',
        "clean,corrupted\n\x00,b",
        "clean,corrupted\n" + "x" * 2_000_000 + ",b",
        "\ufeff" + table,
        table * 2,
        "clean,corrupted\n" + "".join(f"clean {number},corrupted {number}\n" for number in range(30_000)),
    )
    for number, text in enumerate(raw):
        yield f"raw {number}", ".csv", text.encode()
    yield "no keys", ".json", json.dumps([{}]).encode()
    yield "huge number", ".json", f'[{{"clean": {HUGE}, "corrupted": "a"}}]'.encode()

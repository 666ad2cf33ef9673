"""Hostile inputs: what a stranger, a typing error or a bad disk may hand to the commands. The same for the same seed.

Each function yields (name, content) of one kind of input. Half is made by hand, from what has broken such readers
before; half is a good input with bytes or values changed at random. Nothing in it is harmful: it is only malformed.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**60, 1e308, -0.5, "", " ", "\x00", "\x1b[2J", "x" * 5000, "auto", "all"),
    *(
        [],
        {},
        [[]],
        [None],
        ["a", "a"],
        {"a": {"b": [1]}},
        ["../../x"],
        "../../x",
        "/",
        "~nobody/x",
        "\ud800",
        "%s{0}$HOME",
    ),
    *(
        "NaN",
        "1e-3",
        "-",
        "planted/none",
        ["planted/monolithic", "PLANTED/monolithic"],
        "a/b/c",
        "a@b",
        "hf://",
        "hf://a/b",
    ),
)
"""Values that a key may be given."""
RAW_YAML = (
    *(
        "",
        "\n\n",
        "---",
        "...",
        "- a",
        "a",
        "5",
        "null",
        "[",
        "{",
        "}",
        "\t",
        "a: b: c",
        "a:\n\tb: 1",
        "%YAML 9.9\n---\na: 1",
    ),
    *("!!python/object/apply:os.system [id]", "seed: !!python/name:os.system", "seed: !!int x", "seed: !!binary x"),
    *("? [a]\n: 1", "? {a: 1}\n: 2", "<<: 5", "<<: [1]", "a: *b", "a: &a [*a]", "&a {b: *a}", "seed: 1\nseed: 2"),
    *(
        "a: " + "[" * 3000,
        "a: " + "{a: " * 900,
        "- " * 4000,
        "seed: " + "9" * 9000,
        "# " + "x" * 2_000_000,
        "models: [" + "a," * 11_000 + "]",
    ),
    "a: &a [x]\n" + "".join(f"b{n}: &b{n} [{','.join([f'*b{n - 1}' if n else '*a'] * 9)}]\n" for n in range(30)),
    "a: &a {k: 1}\n"
    + "".join(f"b{n}: &b{n} {{<<: [{','.join([f'*b{n - 1}' if n else '*a'] * 9)}]}}\n" for n in range(30)),
    "\ufeffseed: 1",
    "seed: \x07",
    "a: |\n" + " x\n" * 1000,
    "sae: {k: 1, k: 2}",
)
OVERRIDES = (
    "",
    "=",
    "a",
    "seed",
    "seed=",
    "=1",
    ".=1",
    "a..b=1",
    "seed.x=1",
    "sae=5",
    "sae.k.x=1",
    "models=[",
    "seed=!!int x",
    "a" * 9000 + "=1",
)
FLAGS = (
    *(
        ["--shard", "0/0"],
        ["--shard", "9" * 50 + "/1"],
        ["--stages", ","],
        ["--stages", "inference,,x"],
        ["--force", ""],
    ),
    *(
        ["--stages", "\x1b[2J"],
        ["--result-dir", ""],
        ["--result-dir", "a\x00b"],
        ["--result-dir", "x" * 300],
        ["--result-dir", "/dev/null/x"],
    ),
)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Return bytes with something changed: cut off, flipped, doubled, dropped, replaced."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 4, 30))):
        if not changed:
            return b""
        at, length = generator.randrange(len(changed)), generator.choice((1, 2, 8, 64))
        kind = generator.randrange(6)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at : at + length] = generator.randbytes(length)
        else:
            changed[at:at] = generator.choice(
                (b"\x00", b'"', b"{", b"[", b"\n", b",", b"\xff", b"\xed\xa0\x80", b"999999999999")
            )
    return bytes(changed)


def with_value(content: Any, generator: random.Random) -> Any:
    """Return a JSON value in which one part, anywhere, has become a hostile one, or a key has gone or come."""
    content = json.loads(json.dumps(content))
    holders = [content]
    for holder in holders:
        inner = holder.values() if isinstance(holder, dict) else holder
        holders += [each for each in inner if isinstance(each, dict | list) and each]
    holder = generator.choice(holders)
    key = generator.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if generator.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and generator.random() < 0.1:
        holder[generator.choice(("../x", "\x00", "", "x" * 999))] = holder.pop(key)
    else:
        holder[key] = generator.choice(VALUES)
    return content


def configurations(plain: dict[str, Any], seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield YAML files.

    Args:
        plain: A configuration with every key.
        seed: Of the changes.
        n: Changed ones.
    """
    generator = random.Random(f"configurations {seed}")
    for number, text in enumerate(RAW_YAML):
        yield f"raw {number}", text.encode("utf-8", "surrogatepass")
    for number, content in enumerate(
        (b"\xff\xfe\x00", b"\x00" * 64, bytes(range(256)), b"seed: \x80", "seed: 1".encode("utf-16"))
    ):
        yield f"bytes {number}", content
    for number in range(n):
        if generator.random() < 0.75:
            yield f"value {number}", json.dumps(with_value(plain, generator)).encode("utf-8", "surrogatepass")
        else:
            yield f"changed {number}", mutated(json.dumps(plain, indent=1).encode(), generator)


GOOD_CSV = b"prompt,category\n" + b"".join(b'"tell me, please, about %d",violence\n' % number for number in range(12))


def tables(seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of prompts."""
    generator = random.Random(f"tables {seed}")
    rows = (
        *(
            b"",
            b"\n",
            b"prompt",
            b"prompt,category",
            b"category\nx",
            b"prompt,prompt,category\na,b,c",
            b"prompt;category\na;b",
        ),
        *(
            b"prompt,category\n\x00,\x00",
            b'prompt,category\n"a,b',
            b'prompt,category\n"a"b,c',
            b"prompt,category\na,b,c,d",
            b"\xff\xfe\x00",
        ),
        *(
            "prompt,category\na,b".encode("utf-16"),
            b"prompt,category\r\ra,b\r",
            b"PROMPT , Category\na,b",
            b"prompt,category\n,\n , \n",
        ),
        b"prompt,category\n" + b"a," + b"x" * 5000,
        b"prompt,category\n" + b'"' + b"x" * 11_000_000 + b'",violence',
        b",".join(b"c%d" % number for number in range(20_000)),
        b"\xef\xbb\xbf" + GOOD_CSV,
        GOOD_CSV.replace(b"violence", b"../../../../escaped"),
        GOOD_CSV.replace(b"violence", "=cmd|'/c calc'!A0 \u202e<script>\x1b[2J".encode()),
        GOOD_CSV.replace(b"violence", b"con"),
        GOOD_CSV.replace(b"violence", b"_-_ -_"),
        GOOD_CSV.replace(b"tell", b"{{ 7 * 7 }}<s></s>\x07"),
        GOOD_CSV * 3,
    )
    for number, content in enumerate(rows):
        yield f"raw {number}", content
    for number in range(n):
        yield f"changed {number}", mutated(GOOD_CSV, generator)


def headers() -> Iterator[tuple[str, bytes]]:
    """Yield weights whose headers lie."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for number, change in enumerate(
        ({"shape": [1 << 62, 4]}, {"shape": [-1]}, {"data_offsets": [0, 1 << 62]}, {"dtype": "X"}, {"shape": 5})
    ):
        text = json.dumps({"W_enc": entry | change}).encode()
        yield f"header {number}", struct.pack("<Q", len(text)) + text + bytes(16)
    for length in (1 << 60, (1 << 64) - 1, 1 << 32, 0):
        yield f"header of {length} bytes", struct.pack("<Q", length) + b"{}" + bytes(16)
    yield "nested header", struct.pack("<Q", 100_000) + b"[" * 100_000
    yield "nothing", b""
    yield "pickle", pickle.dumps({"a": [1, 2]})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../escaped.npy", bytes(1 << 24))
    yield "swelling archive", archive.getvalue()
    array = io.BytesIO()
    np.savez(array, W_enc=np.array([None], dtype=object))
    yield "objects", array.getvalue()


def json_files(content: Any, name: str, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield JSON files: malformed ones, and changes of a good one."""
    generator = random.Random(f"{name} {seed}")
    raw = (
        b"",
        b"[",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"{}",
        b"[" * 50_000,
        b'{"a":' * 50_000,
        b"\xff",
        b"1" * 5000,
        b"NaN",
        b'{"a": 1e999}',
    )
    for number, each in enumerate(raw):
        yield f"raw {number}", each
    for number in range(n):
        if generator.random() < 0.7:
            yield f"value {number}", json.dumps(with_value(content, generator)).encode()
        else:
            yield f"changed {number}", mutated(json.dumps(content).encode(), generator)


def weights(content: bytes, name: str, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield weights: with lying headers, and changes of good ones, most of them in the header."""
    generator = random.Random(f"{name} {seed}")
    yield from headers()
    for number in range(n):
        cut = generator.choice((64, 512, len(content)))
        yield f"changed {number}", mutated(content[:cut], generator) + content[cut:]


def label_files(ids: list[str], seed: int, n: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, suffix, content) of labels by people."""
    generator = random.Random(f"labels {seed}")
    good = [{"id": each, "label": "refused", "response": "- no\n=1"} for each in ids]
    table = "id,label,response\n" + "".join(f'{each},refused,"- no"\n' for each in ids)
    lines = "\n".join(map(json.dumps, good))
    for name, content in json_files(good, "labels as JSON", seed, n):
        yield name, ".json", content
    for suffix, text in ((".csv", table), (".jsonl", lines)):
        for number in range(n):
            yield f"changed {number}", suffix, mutated(text.encode(), generator)
    for suffix, content in (
        (".csv", b""),
        (".csv", b"id,label\n\x00,refused"),
        (".csv", b"id,label\na,refused,more,and more"),
        (".csv", b'id,label\n"a'),
        (".csv", b"id,label,id\na,refused,b"),
        (".csv", b"id,label,response\na,refused," + b"x" * 200_000),
        (".jsonl", b"[" * 50_000),
        (".jsonl", b'{"id": "a", "label": ' + b"1" * 5000 + b"}"),
        (".jsonl", b'{"id": {"a": 1}, "label": ["refused"]}'),
        (".jsonl", b'{"id": "\\ud800", "label": "\\ud800"}'),
        (".json", b'{"a": "refused", "b": {"c": 1}}'),
        (".xlsx", b"PK\x03\x04"),
        ("", b"refused"),
    ):
        yield f"raw {len(content)}", suffix, content


def verdict_files(lines: list[str], seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of a judge's verdicts."""
    generator = random.Random(f"verdicts {seed}")
    whole = "\n".join(lines).encode()
    key = json.loads(lines[0])["key"]
    for number, line in enumerate(
        (
            b"[" * 50_000,
            b"{}",
            b"5",
            b"\xff\x00",
            b'{"key": [1], "behaviour": [], "rule": 1, "confidence": 1, "checksum": ""}',
            json.dumps(
                {"key": key, "behaviour": "refused", "rule": "x", "confidence": 10**400, "checksum": "0"}
            ).encode(),
            json.dumps({"key": key, "behaviour": "refused", "rule": "x", "confidence": 0.5, "checksum": None}).encode(),
        )
    ):
        yield f"raw {number}", line
    for number in range(n):
        yield f"changed {number}", mutated(whole, generator)

"""Read one YAML file and remember on which line each key and list entry stands.

Values are read by the rules of YAML 1.2, because those of YAML 1.1 (PyYAML's) change what people write without a word:
`no` and `off` become false, `1e-3` text, `010` eight, `1:30` ninety. Keys that stand twice and keys that are no words
are found. A configuration is written by people, so what no person writes is refused before it takes time or memory:
tags, which could make other things than words, numbers and lists; anchors that multiply; numbers of a hundred digits; a
file of a megabyte. This module does not know which keys there are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from refusal.errors import InputError

Location = tuple[str | int, ...]
"""Keys, and positions in lists, from the top of the file."""

EXAMPLE = "configurations/quickstart.yaml"
MOST_BYTES = 1 << 20
"""Of a file."""
MOST_ENTRIES = 10_000
"""Keys, list entries and values of a file, with those that an alias stands for."""
MOST_DIGITS = 100
"""Of a number."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _letters = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _letters)

_RESOLVER = _Loader("")
"""Says what a value without a tag is."""


@dataclass(frozen=True)
class Finding:
    """Something wrong, with the line it stands on (0: on none)."""

    line: int
    text: str


@dataclass(frozen=True)
class YamlFile:
    """What a file holds."""

    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    """The line of each key and list entry; lines count from 1."""
    findings: tuple[Finding, ...] = ()
    """Keys that stand twice."""


def read_yaml(path: Path, flag: str = "--config", example: str = EXAMPLE) -> YamlFile:
    """Return what a YAML file with `key: value` lines holds; an empty file holds nothing.

    Args:
        path: The file.
        flag: The option that names it on the command line.
        example: A file of its kind, for messages.

    Raises:
        InputError: The file is missing, no UTF-8 text, no valid YAML, or no mapping.
    """
    text = _read_text(path, flag, example)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return YamlFile()
        if not isinstance(node, yaml.MappingNode):
            raise InputError(f"{path}:{_line(node)}: the file holds no `key: value` lines; see {example}")
        found = _Walk(str(path))
        found.document(node)
        if found.unusable:
            raise InputError("\n".join(found.unusable))
        content = _Loader("").construct_document(node)
    except yaml.YAMLError as error:
        raise InputError(_syntax_message(path, error)) from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML: nested too deeply; see {example}") from error
    return YamlFile(content, found.lines, tuple(found.findings))


def read_value(text: str) -> Any:
    """Return a value as a file would give it.

    Raises:
        ValueError: The text is no valid YAML; the message says why.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        found = _Walk("")
        found.document(node)
        if found.unusable:
            raise ValueError(found.unusable[0].split(": ", 1)[1].partition(";")[0])
        return _Loader("").construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(getattr(error, "problem", None) or "cannot be read") from error


def _read_text(path: Path, flag: str, example: str) -> str:
    try:
        with path.open("rb") as handle:  # what is piped in is read too, and not without end
            content = handle.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{flag} {path}: more than {MOST_BYTES} bytes; give a YAML file, e.g. {example}")
        return content.decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{flag} {path}: no such file; give a YAML file, e.g. {example}{_near(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{flag} {path}: not readable as UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        inside = _yaml_files(path)
        hint = f"; in it are {', '.join(map(str, inside[:6]))}" if inside else ""
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {path}: not readable ({reason}); give a YAML file{hint}") from error


def _near(path: Path) -> str:
    there = _yaml_files(path.parent)
    near = difflib.get_close_matches(path.name, [file.name for file in there], n=1)
    if near:
        return f"; did you mean {path.with_name(near[0])}?"
    return f"; in that folder are {', '.join(map(str, there[:6]))}" if there else ""


def _yaml_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    except OSError:  # a name that no file can have
        return []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f":{mark.line + 1}"
    if isinstance(error, yaml.reader.ReaderError):
        what = f"character {error.character:#04x} at position {error.position} is not allowed; delete it"
    else:
        problem = getattr(error, "problem", None) or "cannot be read"
        what = f"{problem}; check indentation (spaces, no tabs) and quotes"
    return f"{path}{line}: not valid YAML: {what}"


_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "str", "merge")}


class _Walk:
    """Visits every key and list entry of a file once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Location, int] = {}
        self.findings: list[Finding] = []
        self.unusable: list[str] = []
        self._open: list[yaml.Node] = []
        self._visited: set[int] = set()
        self._entries: dict[int, int] = {}

    def document(self, node: yaml.Node) -> None:
        """Visit everything; what cannot be used at all is in `unusable`."""
        self._value(node, ())
        if not self.unusable and self._size(node) > MOST_ENTRIES:
            self.unusable.append(
                f"{self.path}:{_line(node)}: more than {MOST_ENTRIES} entries, those that anchors repeat with them; "
                f"write only what is needed; see {EXAMPLE}"
            )

    def _size(self, node: yaml.Node) -> int:
        """Return the entries of a value written out; none of it contains itself."""
        if id(node) not in self._entries:
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            nodes = [each for pair in inner for each in (pair if isinstance(pair, tuple) else (pair,))]
            self._entries[id(node)] = 1 + sum(map(self._size, nodes))
        return self._entries[id(node)]

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        is_plain = node.style is None
        implied = _RESOLVER.resolve(yaml.ScalarNode, node.value, (is_plain, not is_plain))
        if node.tag not in _PLAIN_TAGS or node.tag != implied:
            self._refuse(node, f"the tag {_shown(node.tag)} is not read; delete it, or put all in quotes")
        elif len(node.value) > MOST_DIGITS and not node.tag.endswith(":str"):
            self._refuse(node, f"a number of {len(node.value)} digits; put it in quotes if it is a name")

    def _refuse(self, node: yaml.Node, said: str) -> None:
        self.unusable.append(f"{self.path}:{_line(node)}: {said}; see {EXAMPLE}")

    def mapping(self, node: yaml.MappingNode, above: Location) -> None:
        """Visit the keys of a mapping: their lines, and findings for those that are no words or stand twice."""
        seen: set[str] = set()
        for key_node, value in node.value:
            line = _line(key_node)
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self.unusable.append(f"{self.path}:{line}: keys are words; found {shown}; see {EXAMPLE}")
                continue
            self._check_scalar(key_node)
            location = (*above, str(key_node.value))
            if key_node.value in seen:
                name = ".".join(map(str, location))
                self.findings.append(Finding(line, f"{self.path}:{line}: {name}: stands twice; keep one of them"))
            seen.add(key_node.value)
            self.lines.setdefault(location, line)
            self._value(value, location)

    def _value(self, node: yaml.Node, location: Location) -> None:
        if any(node is each for each in self._open):
            self.unusable.append(f"{self.path}:{_line(node)}: {location[0]}: refers to itself; write it out")
            return
        if id(node) in self._visited:
            return
        self._visited.add(id(node))
        self._open.append(node)
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        elif node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self._refuse(node, f"the tag {_shown(node.tag)} is not read; delete it")
        if isinstance(node, yaml.MappingNode):
            self.mapping(node, location)
        else:
            for index, entry in _entries(node):
                self.lines[*location, index] = _line(entry)
                self._value(entry, (*location, index))
        self._open.pop()


def _shown(tag: str) -> str:
    """Return a tag as it was written."""
    return tag.replace("tag:yaml.org,2002:", "!!") if tag.startswith("tag:") else tag


def _entries(node: yaml.Node) -> Iterator[tuple[int, yaml.Node]]:
    return enumerate(node.value) if isinstance(node, yaml.SequenceNode) else iter(())

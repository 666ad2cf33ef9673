"""Read one YAML file and remember on which line each key and list entry stands.

Values are read by the rules of YAML 1.2, because those of YAML 1.1 (PyYAML's) change what people write without a word:
`no` and `off` become false, `1e-3` text, `010` eight, `1:30` ninety. Keys that stand twice and keys that are no words
are found. This module does not know which keys there are.
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
MAX_BYTES = 1 << 20
"""Larger files are no configurations: a device, or data given by mistake."""


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
        found = _Walk(path, example)
        found.mapping(node, ())
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
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(getattr(error, "problem", None) or "cannot be read") from error


def _read_text(path: Path, flag: str, example: str) -> str:
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"{flag} {path}: found more than {MAX_BYTES:,} bytes; give a YAML file, e.g. {example}")
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise InputError(f"{flag} {path}: no such file; give a YAML file, e.g. {example}{_near(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{flag} {path}: not readable as UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error
    except OSError as error:
        inside = _yaml_files(path)
        hint = f"; in it are {', '.join(map(str, inside[:6]))}" if inside else ""
        raise InputError(f"{flag} {path}: not readable ({error.strerror}); give a YAML file{hint}") from error


def _near(path: Path) -> str:
    there = _yaml_files(path.parent)
    near = difflib.get_close_matches(path.name, [file.name for file in there], n=1)
    if near:
        return f"; did you mean {path.with_name(near[0])}?"
    return f"; in that folder are {', '.join(map(str, there[:6]))}" if there else ""


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(found for found in folder.glob("*.y*ml")) if folder.is_dir() else []


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


class _Walk:
    """Visits every key and list entry of a file once."""

    def __init__(self, path: Path, example: str) -> None:
        self.path = path
        self.example = example
        self.lines: dict[Location, int] = {}
        self.findings: list[Finding] = []
        self.unusable: list[str] = []
        self._open: list[yaml.Node] = []
        self._visited: set[int] = set()

    def mapping(self, node: yaml.MappingNode, above: Location) -> None:
        """Visit the keys of a mapping: their lines, and findings for those that are no words or stand twice."""
        seen: set[str] = set()
        for key_node, value in node.value:
            line = _line(key_node)
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self.unusable.append(f"{self.path}:{line}: keys are words; found {shown}; see {self.example}")
                continue
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
        if id(node) in self._visited:
            return
        self._visited.add(id(node))
        self._open.append(node)
        if isinstance(node, yaml.MappingNode):
            self.mapping(node, location)
        else:
            for index, entry in _entries(node):
                self.lines[*location, index] = _line(entry)
                self._value(entry, (*location, index))
        self._open.pop()


def _entries(node: yaml.Node) -> Iterator[tuple[int, yaml.Node]]:
    return enumerate(node.value) if isinstance(node, yaml.SequenceNode) else iter(())

"""Say what is wrong with a configuration: where, what was found, what is allowed, the nearest valid name.

What is allowed is read from the fields' own declarations, so that a message cannot drift from the check. One value
gives one finding, however many alternatives it failed. This module does not know which keys there are: the model class
is an argument.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from refusal.untrusted.yaml_file import Finding, Location

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100
_repr.maxlevel = 3
_LONGEST_ENTRY = 60
"""Characters of a text that is shown once more, as an entry of a list."""


@dataclass(frozen=True)
class Places:
    """Where the parts of a configuration were written."""

    path: Path
    lines: Mapping[Location, int]
    """Line of each key and list entry of the file."""
    overrides: Mapping[Location, str]
    """What was written on the command line for a key, e.g. `--set seed=1`."""

    def of(self, location: Location) -> tuple[int, str]:
        """Return line (0: not in the file) and name of the place where the value at a location was written."""
        for keys, override in self.overrides.items():
            if keys == location[: len(keys)] or location == keys[: len(location)]:
                return 0, override
        for n in range(len(location), 0, -1):
            if location[:n] in self.lines:
                return self.lines[location[:n]], f"{self.path}:{self.lines[location[:n]]}"
        return 0, str(self.path)


def describe(error: ValidationError, model: type[BaseModel], places: Places) -> list[Finding]:
    """Return one finding for each value that is wrong."""
    schema = _schema(model)
    problems: dict[Location, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_location(problem, schema), []).append(problem)
    return [
        _finding(location, found, schema, places)
        for location, found in problems.items()
        # of a list and its entries, the entries say more
        if not any(other[:-1] == location and isinstance(other[-1], int) for other in problems)
    ]


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _finding(location: Location, problems: Sequence[Any], schema: dict[str, Any], places: Places) -> Finding:
    line, where = places.of(location)
    keys = tuple(part for part in location if isinstance(part, str))
    name = ".".join(keys) or "the file"
    first = problems[0]
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return Finding(line, f"{where}: {name}: unknown key; {_nearest_key(keys, schema)}")
    shown = f"found {_shown(first['input'])}; " if location and not isinstance(first["input"], dict) else ""
    if first["type"] == "string_unicode":
        return Finding(line, f"{where}: {name}: {shown}it holds half a character (a surrogate); write the whole one")
    own = next((problem for problem in problems if problem["type"] == "value_error"), None)
    if own is not None:
        return Finding(line, f"{where}: {name}: {shown}{own['ctx']['error']}")
    allowed = _declared(location, schema)
    hint = _hint(first["input"], list(_alternatives(allowed, schema)))
    return Finding(line, f"{where}: {name}: {shown}allowed is {_phrase(allowed, schema)}{hint}")


def _location(problem: Any, schema: dict[str, Any]) -> Location:
    """Return the keys of a problem, and the position in a list; without pydantic's names of alternatives."""
    location: list[str | int] = []
    for part in problem["loc"]:
        properties = _declared(tuple(location), schema).get("properties")
        if properties is not None:
            location.append(str(part))
            if part not in properties:
                break
        elif isinstance(part, int):
            location.append(part)
            break
    return tuple(location)


def _declared(location: Location, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the value at a location; empty for an unknown key."""
    found = schema
    for part in location:
        if isinstance(part, str):
            found = found.get("properties", {}).get(part, {})
        else:
            found = next((_entry(each) for each in _alternatives(found, schema) if each.get("type") == "array"), {})
        found = _resolved(found, schema)
    return found


def _entry(found: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list's entries; of a list of fixed length, whose entries are alike, that of the first."""
    entry: dict[str, Any] = found.get("items") or next(iter(found.get("prefixItems", ())), {})
    return entry


def _resolved(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = found.get("$ref")
    return found if reference is None else schema["$defs"][reference.rpartition("/")[2]]


def _alternatives(found: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in found.get("anyOf", [found]):
        yield _resolved(each, schema)


def _phrase(found: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return what a schema allows, in words.

    >>> _phrase({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}, {})
    'auto or a whole number of at least 1'
    >>> _phrase({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1}, {})
    'a list of at least 1, each entry a or b'
    >>> _phrase({"type": "array", "prefixItems": [{"type": "string"}] * 2, "minItems": 2, "maxItems": 2}, {})
    'a list of 2, each entry text'
    """
    return " or ".join(_one_phrase(each, schema) for each in _alternatives(found, schema))


def _one_phrase(found: dict[str, Any], schema: dict[str, Any]) -> str:
    names = _names_in(found)
    if names:
        return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    if found.get("type") == "array":
        least = f" of at least {found['minItems']}" if "minItems" in found else ""
        length = f" of {len(found['prefixItems'])}" if "prefixItems" in found else least
        return f"a list{length}, each entry {_phrase(_resolved(_entry(found), schema), schema)}"
    if "properties" in found:
        return f"a section with the keys {', '.join(found['properties'])}"
    if found.get("type") == "object":
        return f"a section in which each value is {_phrase(found['additionalProperties'], schema)}"
    if found.get("format") == "path":
        return "a path"
    if found.get("type") == "string":
        return "text that is not empty" if found.get("minLength") else "text"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    return words[found["type"]] + _range(found)


def _range(found: dict[str, Any]) -> str:
    """Return the range of a number in words; pydantic writes limits in one of two ways.

    >>> _range({"minimum": 1, "maximum": 9}), _range({"gt": 0, "lt": 1}), _range({"minimum": 2})
    (' from 1 to 9', ' above 0 and below 1', ' of at least 2')
    """
    low, high = found.get("minimum", found.get("ge")), found.get("maximum", found.get("le"))
    if low is not None and high is not None:
        return f" from {low} to {high}"
    above, below = found.get("exclusiveMinimum", found.get("gt")), found.get("exclusiveMaximum", found.get("lt"))
    limits = (("of at least", low), ("above", above), ("at most", high), ("below", below))
    words = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
    return f" {words}" if words else ""


def _names_in(found: dict[str, Any]) -> list[str]:
    return [str(found["const"])] if "const" in found else [str(name) for name in found.get("enum", ())]


def _nearest_key(keys: tuple[str, ...], schema: dict[str, Any]) -> str:
    allowed = list(_declared(keys[:-1], schema).get("properties", {}))
    near = difflib.get_close_matches(keys[-1], allowed, n=1)
    if near:
        return f"did you mean {near[0]}?"
    for section, inner in schema["properties"].items():
        if keys[-1] in _resolved(inner, schema).get("properties", {}):
            return f"did you mean {keys[-1]} of the section {section}?"
    return f"allowed are {', '.join(allowed)}"


def _hint(found: Any, alternatives: Sequence[dict[str, Any]]) -> str:
    """Return what to do about a value, where that can be guessed."""
    if isinstance(found, str):
        names = [name for each in alternatives for name in _names_in(each)]
        near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
        if near:
            return f"; did you mean {near[0]}?"
        is_list = any(each.get("type") == "array" for each in alternatives)
        return f"; for one entry write [{found}]" if is_list and 0 < len(found) <= _LONGEST_ENTRY else ""
    is_text = any(each.get("type") == "string" and not _names_in(each) for each in alternatives)
    return "; put it in quotes" if is_text and isinstance(found, int | float) else ""


def _shown(value: Any) -> str:
    """Return a value as it would be written in a file.

    >>> _shown(None), _shown(True), _shown("a"), _shown([1])
    ('nothing', 'true', "'a'", '[1]')
    """
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else _repr.repr(value)

"""What every JSON artefact has in common: frozen records, a schema id, and how a file is written and read.

Beside its fields a file holds `checksum`, the SHA-256 of its content as compact JSON with sorted keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refusal.artefacts import CHECKSUM, read_sealed, write_sealed
from refusal.errors import ArtefactError

MAIN = "python run_circuit_analysis.py --config FILE"
"""The command that makes most artefacts."""


class Record(BaseModel):
    """A part of an artefact: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


Loaded = TypeVar("Loaded", bound="Artefact")


class Artefact(Record):
    """A JSON file with a schema id that says what it is and which version."""

    SCHEMA: ClassVar[str]
    MADE_BY: ClassVar[str] = MAIN
    schema_id: str = Field(alias="schema", description="Schema and version, e.g. refusal-circuits/comparison/1.")

    @model_validator(mode="before")
    @classmethod
    def _without_checksum(cls, content: Any) -> Any:
        """Take the content of a file as it is; `load` has compared its checksum."""
        return {key: content[key] for key in content if key != CHECKSUM} if isinstance(content, dict) else content

    @classmethod
    def build(cls: type[Loaded], **fields: Any) -> Loaded:
        """Return the artefact with its schema id filled in."""
        return cls(schema=cls.SCHEMA, **fields)

    def save(self, path: Path) -> None:
        """Write the artefact atomically as JSON, with a checksum of its content."""
        write_sealed(path, self.model_dump(mode="json", by_alias=True))

    @classmethod
    def load(cls: type[Loaded], path: Path) -> Loaded:
        """Return the artefact at `path`.

        Raises:
            ArtefactError: The file is missing, no JSON, changed since it was written, of another schema or incomplete.
        """
        content = read_sealed(path, cls.MADE_BY)
        found = content.get("schema") if isinstance(content, dict) else None
        if found != cls.SCHEMA:
            raise ArtefactError(
                f"{path}: schema: found {found!r}; this version reads {cls.SCHEMA!r}; make it anew with: {cls.MADE_BY}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtefactError(f"{path}: {where}: {first['msg']}; make it anew with: {cls.MADE_BY}") from error

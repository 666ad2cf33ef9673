"""Everything the directions stage has found of one model, read from its files: for figures, reports and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal.artefacts import ResultPaths
from refusal.directions.schemas import (
    CONDITIONS,
    CategoryDirections,
    Condition,
    ContrastDirections,
    Directions,
    DoseFile,
    Selection,
)


@dataclass(frozen=True)
class Found:
    """The artefacts of one model; only `directions` where no direction could be formed."""

    directions: Directions
    selection: Selection | None
    conditions: dict[str, Condition]
    """By name, the baseline first."""
    doses: DoseFile | None
    categories: CategoryDirections | None = None
    contrasts: ContrastDirections | None = None

    @classmethod
    def load(cls, paths: ResultPaths, model: str) -> Found:
        """Return what the stage has written.

        Raises:
            ArtefactError: A file is missing or damaged.
        """
        folder = paths.directions(model)
        directions = Directions.load(folder / "directions.json")
        if directions.reason is not None:
            return cls(directions, None, {}, None)
        names = {name: folder / "responses" / condition_file(name) for name in CONDITIONS}
        conditions = {name: Condition.load(path) for name, path in names.items() if path.exists()}
        return cls(
            directions,
            Selection.load(folder / "selection.json"),
            conditions,
            DoseFile.load(folder / "doses.json"),
            CategoryDirections.load(folder / "categories.json"),
            ContrastDirections.load(folder / "contrasts.json"),
        )


def stage_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files that the stage has written, `directions.json` among them."""
    return sorted(path for path in paths.directions(model).rglob("*") if path.is_file())


def condition_file(name: str) -> str:
    """Return the file name of a condition.

    >>> condition_file("published ablation")
    'published_ablation.json'
    """
    return f"{name.replace(' ', '_')}.json"

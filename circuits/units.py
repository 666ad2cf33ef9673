"""What the result of each stage depends on, and which files it has: configuration keys, versions, inputs, outputs.

Functions of other packages are imported when they are called, so that a plan is quick to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from refusal.artefacts import ResultPaths
from refusal.config import Config, Stage
from refusal.config.patching import PatchingConfig
from refusal.model_files import decisive_files, model_folder

if TYPE_CHECKING:
    pass

INFERENCE_KEYS = (
    "dataset_dir",
    "categories",
    "num_samples_per_category",
    "safe_subset",
    "seed",
    "dtype",
    "max_new_tokens",
    "system_prompt",
    "activation_layers",
    "capture",
)
BESIDE = (Stage.DIRECTIONS, Stage.PATCHING)
"""Stages that lead to no verdict; they run where they are asked for."""
SAES_VERSION = 2
"""Raised when the stage leaves other files or numbers for the same inputs; SAEs whose weights are the same are kept."""
COMPARE_VERSION = 2
"""Raised when the same measurements give another verdict."""
SAE_KEYS = ("sae", "seed", "activation_layers")
CIRCUIT_KEYS = ("circuit", "sae.seeds", "seed", "categories", "activation_layers")
COMPARE_KEYS = (*CIRCUIT_KEYS, "analysis")
DIRECTION_KEYS = ("directions", "seed", "analysis", "categories", "max_new_tokens", "system_prompt", "report")
ANSWER_KEYS = ("analysis.bootstrap", "categories", "seed", "max_new_tokens", "system_prompt", "labels")
PICTURE_KEY = "report.image_format"
PATCHING_KEYS = (
    *(f"patching.{name}" for name in PatchingConfig.model_fields if name != "compare"),
    *ANSWER_KEYS,
    PICTURE_KEY,
)
COMPARED_KEYS = ("compare", "n_pairs", "align", "min_gap", "modes", "kinds", "template_positions", "latex")
PATCHING_COMPARISON_KEYS = (
    *(f"patching.{name}" for name in COMPARED_KEYS),
    "analysis.bootstrap",
    "seed",
    "system_prompt",
)


def direction_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's directions."""
    from circuits.directions.files import direction_files

    return direction_files(paths, model)


def lacks_circuits(config: Config, paths: ResultPaths, model: str) -> str | None:
    """Return that the circuits are others than those whose latents were mapped; None if they are the same."""
    from circuits.patching.stage import lacks_circuits

    return lacks_circuits(config, paths, model)


def taken_direction(config: Config, model: str, paths: ResultPaths) -> Sequence[Path]:
    """Return the files of the direction that a model's patching takes."""
    from refusal.patching.directions import direction_files

    return direction_files(config, model, paths)


def patching_files(config: Config, paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's patching, figures included."""
    from circuits.patching.stage import patching_files

    return patching_files(config, paths, model)


def patching_comparison_files(paths: ResultPaths) -> list[Path]:
    """Return the files of all comparisons of models by patching."""
    return sorted(path for path in (paths.root / "patching" / "comparisons").rglob("[!.]*") if path.is_file())


def existing(*paths: Path) -> list[Path]:
    """Return those files that are there."""
    return [path for path in paths if path.exists()]


def inference_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's inference; files whose names begin with a dot are being written."""
    files = sorted(path for path in paths.activations(model).glob("[!.]*") if path.is_file())
    return [*files, paths.refusal_labels(model), paths.model_outputs(model), paths.evaluation(model)]


def is_of_positions(path: Path) -> bool:
    """Return whether an output is one of the huge ones, which the store compares with its index as it reads them."""
    return path.name.startswith("positions-")


def model_files(source: str, revision: str | None) -> tuple[Path, ...] | None:
    """Return the files that decide what a model computes; None if they are not on this machine."""
    return None if model_folder(source, revision) is None else decisive_files(source, revision)


def pretrained_files(pattern: str | None) -> tuple[Path, ...] | None:
    """Return the files of SAEs that were not trained here; None if they are not on this machine."""
    from refusal.sae.pretrained import files_here

    return () if pattern is None else files_here(pattern)


def lacks_positions(config: Config, paths: ResultPaths, model: str) -> str | None:
    """Return that SAEs are to train on all positions and these were not kept; None if nothing is missing."""
    from refusal.store import ActivationStore

    if not config.sae.uses_all_positions or ActivationStore(paths.activations(model)).has_positions:
        return None
    return (
        "sae.positions is all, and the activations hold the readout position only; the FILE of the inference stage "
        "must say sae.positions: all too"
    )


def sae_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's SAEs."""
    return sorted(path for path in paths.saes(model).rglob("*") if path.is_file())


def circuit_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's circuits."""
    folder = paths.circuit(model, "x").parent
    prefix = paths.circuit(model, "x").name.removesuffix("x_circuit.json")
    # a category's part of a name holds no "_": what does is of another model, whose name begins with this one's
    files = sorted(
        path
        for path in folder.glob("*_circuit.json")
        if path.name.startswith(prefix) and "_" not in path.name.removeprefix(prefix).removesuffix("_circuit.json")
    )
    return [*files, *existing(paths.attributions(model))]

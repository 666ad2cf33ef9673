"""Which direction patching takes, and what is said of one that does not fit."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from tiny_models import make_model

from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.errors import ArtefactError, InputError
from refusal.patching.directions import check_direction, direction_files, taken_direction


def write(folder, direction=None, metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(torch.arange(32.0) if direction is None else direction, folder / "direction.pt")
    (folder / "direction_metadata.json").write_text(json.dumps(metadata or {"pos": -2, "layer": 2}))


def with_direction(folder):
    return Config(patching={"direction": str(folder)})


def test_the_configured_one_goes_before_the_chosen_one_and_that_before_none(tmp_path):
    model, paths = make_model("llama"), ResultPaths(tmp_path / "results")
    assert taken_direction(Config(), model, paths) is None
    write(paths.directions(model.name))
    chosen = taken_direction(Config(), model, paths)
    assert chosen.source == f"directions/{model.name}/direction.pt (position -2, layer 2 as published)"
    assert str(chosen.site) == "residuals_1", "the input of block 2"
    write(tmp_path / "own", metadata={"pos": -1, "layer": 0})
    given = taken_direction(with_direction(tmp_path / "own"), model, paths)
    assert given.source == f"{tmp_path}/own/direction.pt (position -1, layer 0 as published)"
    assert str(given.site) == "residuals_0", "of the embeddings, the first state that can be held"
    assert given.digest != chosen.digest
    assert direction_files(Config(), model.name, paths)[0].parent == paths.directions(model.name)


@pytest.mark.parametrize(
    ("direction", "metadata", "said"),
    [
        (torch.ones(16), None, r"found 16 numbers; llama has d_model 32; use a direction of this model"),
        (torch.full((32,), float("nan")), None, "some numbers are not finite"),
        (torch.zeros(32), None, "its length is 0"),
        ([1.0], None, "found list, no tensor"),
        (None, {"pos": -1, "layer": 9}, "layer is 9; llama has layers 0 to 2"),
        (None, {"pos": -1}, "layer: found None; allowed is a whole number"),
    ],
)
def test_what_does_not_fit_is_said_with_the_key_or_the_command(tmp_path, direction, metadata, said):
    model, paths = make_model("llama"), ResultPaths(tmp_path)
    write(paths.directions(model.name), direction, metadata)
    with pytest.raises(ArtefactError, match=rf"{said}.*make it anew with: .*run_directions.py"):
        taken_direction(Config(), model, paths)
    with pytest.raises(InputError, match=rf"^patching\.direction: .*{said}"):
        taken_direction(with_direction(paths.directions(model.name)), model, paths)


def test_a_configured_file_that_is_missing_or_runs_code_is_refused_before_a_model_loads(tmp_path):
    check_direction(Config())
    for folder, said in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "direction.pt: not found")):
        with pytest.raises(InputError, match=rf"^patching\.direction: .*{said}"):
            check_direction(with_direction(folder))
    write(tmp_path)
    (tmp_path / "direction.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(InputError, match="cannot be read as a tensor"):
        check_direction(with_direction(tmp_path))

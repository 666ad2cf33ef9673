"""A direction that was found elsewhere: read as published, or said what is wrong with it."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from tiny_models import make_model

from refusal.errors import InputError
from refusal.patching.directions import given_direction


def write(folder, direction, metadata):
    torch.save(direction, folder / "direction.pt")
    (folder / "direction_metadata.json").write_text(json.dumps(metadata))
    return str(folder)


def test_the_layer_is_that_before_which_it_was_read(tmp_path):
    found = given_direction(write(tmp_path, torch.arange(32.0), {"pos": -2, "layer": 2}), make_model("llama"))
    assert (str(found.site), found.position, found.layer) == ("residuals_1", -2, 2)
    assert found.direction.tolist() == list(range(32))


@pytest.mark.parametrize(
    ("direction", "metadata", "said"),
    [
        (torch.ones(16), {"pos": -1, "layer": 1}, "found 16 numbers; llama needs 32; use a direction of this model"),
        (torch.full((32,), float("nan")), {"pos": -1, "layer": 1}, "some numbers are not finite"),
        (torch.zeros(32), {"pos": -1, "layer": 1}, "its length is 0"),
        ([1.0], {"pos": -1, "layer": 1}, "found list, no tensor"),
        (torch.ones(32), {"pos": -1, "layer": 9}, "layer is 9; llama has layers 0 to 2"),
        (torch.ones(32), {"pos": -1}, "layer: found None; allowed is a whole number"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, direction, metadata, said):
    with pytest.raises(InputError, match=said):
        given_direction(write(tmp_path, direction, metadata), make_model("llama"))


def test_a_missing_file_and_a_file_that_runs_code_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no direction\.pt and no direction_metadata\.json; allowed is a folder"):
        given_direction(str(tmp_path), make_model("llama"))
    write(tmp_path, torch.ones(32), {"pos": -1, "layer": 1})
    (tmp_path / "direction.pt").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(InputError, match="cannot be read as a tensor"):
        given_direction(str(tmp_path), make_model("llama"))

"""What a run would do and take is said, and refused where it cannot be, before any model loads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from refusal import needs
from refusal.config import Config, Stage
from refusal.errors import InputError
from refusal.model_files import ModelSize
from refusal.needs import check_before_loading, estimate

SIZE = ModelSize(n_layers=2, d_model=10, n_parameters=1000, weight_bytes=4000)


@pytest.fixture
def folder(tmp_path):
    """Return a model folder with what a plan reads of it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 10}))
    save_file({"w": torch.zeros(1000)}, model / "model.safetensors")
    (model / "tokenizer.json").write_text("{}")
    return model


def test_sizes_follow_from_the_shapes_of_what_is_kept():
    config = Config(device="cpu", dtype="float16", sae={"d_sae": 30, "seeds": [0, 1]})
    found = estimate(config, SIZE, 40)
    assert found.n_sites == 2
    assert found.activations == 40 * 2 * 10 * 2
    assert found.saes == 2 * 2 * (2 * 30 * 10 * 4)
    assert found.memory > needs._LIBRARIES + 1000 * 2


def test_named_sites_are_counted():
    config = Config(device="cpu", activation_layers=("residuals_0",))
    assert estimate(config, SIZE, 40).activations == 40 * 10 * 4


def test_sites_beyond_the_last_layer_are_told_for_every_model(folder, tmp_path):
    layers = ("residuals_1", "mlp_2", "attention_7")
    config = Config(models=(str(folder),), activation_layers=layers, result_dir=tmp_path / "r")
    with pytest.raises(InputError) as error:
        check_before_loading(config)
    assert str(error.value) == (
        f"activation_layers: {folder} has no site 'mlp_2', 'attention_7'; it has residuals_0 to residuals_1, mlp_0 to "
        "mlp_1, attention_0 to attention_1"
    )
    assert not (tmp_path / "r").exists()


def test_a_disk_without_room_is_told_with_both_sizes(folder, tmp_path, monkeypatch):
    config = Config(models=(str(folder),), device="cpu", result_dir=tmp_path / "r")
    check_before_loading(config)
    monkeypatch.setattr(needs, "free_bytes", lambda path: 1000)
    with pytest.raises(
        InputError, match=r"is on a disk with 1 KiB free; activations and SAEs take about \d+ KiB; free"
    ):
        check_before_loading(config)
    check_before_loading(config.model_copy(update={"stages": (Stage.REPORT,)}))


def test_what_is_there_already_needs_no_room(folder, tmp_path, monkeypatch):
    config = Config(models=(str(folder),), device="cpu", result_dir=tmp_path / "r")
    kept = needs.ResultPaths(config.result_dir).activations(str(folder))
    kept.mkdir(parents=True)
    (kept / "shard").write_bytes(bytes(10**6))
    monkeypatch.setattr(needs, "free_bytes", lambda path: 0)
    check_before_loading(config)


def test_a_model_that_is_not_there_is_told_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        check_before_loading(Config(models=(str(tmp_path / "none"),)))


def test_all_positions_take_more_room_but_only_a_shard_of_memory():
    config = Config(device="cpu", dtype="float16", sae={"positions": "all", "seeds": [0], "d_sae": 30})
    few, many = (estimate(config, SIZE, n_prompts) for n_prompts in (40, 10**6))
    assert few.activations == 40 * (1 + needs.OWN_POSITIONS) * 2 * 10 * 2
    readout = 10**6 * 2 * 10 * 2
    assert many.activations > 40 * readout
    assert (
        many.memory <= needs._LIBRARIES + readout + 2 * needs.SHARD_BYTES + needs.IN_MEMORY_BYTES + 2 * 10**6 * 10 * 4
    )
    assert (
        estimate(
            config.model_copy(update={"sae": config.sae.model_copy(update={"positions": "readout"})}), SIZE, 40
        ).activations
        == 40 * 2 * 10 * 2
    )

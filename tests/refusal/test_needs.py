"""What a run would do and take is said, and refused where it cannot be, before any model loads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from refusal import needs
from refusal.config import Config, Stage
from refusal.errors import InputError
from refusal.known_sizes import known_size
from refusal.model_files import ModelSize, model_size
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
    piecewise = 3 * needs.SHARD_BYTES + needs.IN_MEMORY_BYTES
    assert many.memory <= needs._LIBRARIES + readout + piecewise + 2 * 10**6 * 10 * 4
    assert (
        estimate(
            config.model_copy(update={"sae": config.sae.model_copy(update={"positions": "readout"})}), SIZE, 40
        ).activations
        == 40 * 2 * 10 * 2
    )


def test_a_well_known_model_has_a_plan_before_it_is_downloaded():
    """Llama 2 7B over 80,000 prompts at 32 sites in bfloat16: 80,000 x 32 x 4,096 x 2 bytes of activations."""
    size = needs.model_size("meta-llama/Llama-2-7b-chat-hf")
    config = Config(device="cpu", dtype="bfloat16", sae={"d_sae": 16384, "seeds": [0]})
    found = estimate(config, size, 80_000)
    assert found.n_sites == 32
    assert found.activations == 80_000 * 32 * 4096 * 2
    assert found.saes == 32 * 2 * 16384 * 4096 * 4
    assert 6_738_415_616 * 2 < found.memory < 20 * 2**30


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", {"model_type": "llama", "intermediate_size": 11008}),
        ("mistralai/Mistral-7B-Instruct-v0.2", {"model_type": "mistral", "num_key_value_heads": 8}),
    ],
)
def test_known_parameters_are_those_of_the_published_configuration(tmp_path, name, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 32, "hidden_size": 4096}))
    assert model_size(str(tmp_path)) == known_size(name)


def test_extra_sites_and_positions_are_counted():
    capture = {"sites": ["heads", "mlp_0"], "positions": ["readout", -1, -2, "mean", "all"]}
    size = ModelSize(n_layers=2, d_model=10, n_parameters=1000, weight_bytes=4000, d_heads=16)
    found = estimate(Config(device="cpu", dtype="float32", capture=capture), size, 40)
    assert found.activations == 40 * (3 + needs.OWN_POSITIONS) * (2 * 10 + 2 * 16 + 10) * 4


def test_extra_sites_beyond_the_last_layer_are_told(folder, tmp_path):
    config = Config(models=(str(folder),), capture={"sites": ["heads_2"]}, result_dir=tmp_path / "r")
    with pytest.raises(InputError, match=r"capture.sites: .* has no site 'heads_2'; it has .*heads_0 to heads_1"):
        check_before_loading(config)

"""Layers, width, parameters and decisive files of a model are read without loading it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from refusal.errors import InputError
from refusal.model_files import ModelSize, decisive_files, model_folder, model_size
from refusal.prompts import embedded


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 8}))
    save_file({"a": torch.zeros(4, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "planted.json").write_text("{}")
    return tmp_path


def test_size_is_read_from_the_configuration_and_the_header_of_the_weights(folder):
    weights = (folder / "model.safetensors").stat().st_size
    assert model_size(str(folder)) == ModelSize(n_layers=3, d_model=8, n_parameters=27, weight_bytes=weights, d_heads=8)


@pytest.mark.parametrize(
    "content",
    [{"n_layer": 2, "n_embd": 4}, {"text_config": {"num_hidden_layers": 2, "hidden_size": 4}, "hidden_size": 9}],
)
def test_other_families_say_it_in_other_words(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    size = model_size(str(folder))
    assert (size.n_layers, size.d_model) == (2, 4)


def test_what_a_configuration_does_not_say_is_zero(folder):
    (folder / "config.json").write_text("{}")
    assert model_size(str(folder)).n_layers == 0


def test_parameters_of_old_weight_files_are_guessed_at_two_bytes_each(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bytes(10))
    assert model_size(str(folder)).n_parameters == 5


def test_size_of_a_shipped_model_is_that_of_the_loaded_one():
    from refusal.models import ChatModel

    name = embedded.model_names()[0]
    model = ChatModel.load(name, device="cpu")
    size = model_size(str(embedded.model_path(name)))
    assert (size.n_layers, size.d_model) == (model.n_layers, model.d_model)
    stored = {weight.data_ptr(): weight.numel() for weight in model.model.parameters()}
    assert size.n_parameters == sum(stored.values())


def test_decisive_files_are_those_the_model_reads(folder):
    assert [path.name for path in decisive_files(str(folder))] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_model_that_is_not_on_this_machine_has_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder("someone/no-such-model", "main") is None
    assert model_folder("no/hub/id") is None
    assert decisive_files("someone/no-such-model") == ()
    assert model_size("someone/no-such-model") is None


def test_a_model_in_the_hubs_cache_is_found_by_its_revision(tmp_path, folder, monkeypatch):
    from huggingface_hub import constants

    commit = "a" * 40
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((folder / name).read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert model_folder("someone/tiny") == snapshot
    assert model_folder("someone/tiny", "other") is None
    assert model_size("someone/tiny").n_parameters == 27
    assert [path.name for path in decisive_files("someone/tiny")] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_told(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"config.json .*; get the whole model anew"):
        model_size(str(folder))


@pytest.mark.parametrize("content", [b"", b"short", bytes(8), b"\xff" * 64, b"\x02" + bytes(7) + b"[]"])
def test_damaged_weights_are_told(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors is no safetensors file"):
        model_size(str(folder))

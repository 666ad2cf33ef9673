"""A model that is spread over places gives what it gives in one place, and what cannot work is told."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS, make_model

from circuits.job import inference_main
from refusal import loading
from refusal.capture import capture
from refusal.config import load
from refusal.errors import InputError
from refusal.models import ChatModel
from refusal.models import checks as model_checks
from refusal.weights import device_of, is_offloaded, weights_digest

HELD = {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
SPREAD = {
    "to disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
    },
    "embeddings too": {"model.embed_tokens": "disk", "model.layers": "disk"},
}


@pytest.fixture(params=SPREAD)
def spread(request, llama_folder):
    """Return a model of which layers are on disk, and the same in one place."""
    whole = ChatModel.load(str(llama_folder), device="cpu", dtype="float32")
    parts = {**SPREAD[request.param], **HELD}
    model = ChatModel.load(str(llama_folder), device="cpu", dtype="float32", device_map=parts)
    assert is_offloaded(model.model)
    assert not is_offloaded(whole.model)
    return model, whole


def test_a_model_with_layers_on_disk_gives_the_activations_and_answers_of_the_whole(spread):
    model, whole = spread
    assert model.device == device_of(model.model.lm_head) == torch.device("cpu")
    token_ids = whole.tokenize(PROMPTS)
    sites = [*whole.sites(), *whole.head_sites()]
    found, wanted = (capture(each, token_ids, sites, max_new_tokens=4) for each in (model, whole))
    assert found.answers == wanted.answers
    for site in sites:
        torch.testing.assert_close(found.readout[site], wanted.readout[site], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.first_token.logits, wanted.first_token.logits, atol=1e-6, rtol=1e-6)


def test_its_digest_is_that_of_the_whole_so_that_its_shards_are_taken_up(spread):
    model, whole = spread
    assert weights_digest(model.model) == weights_digest(whole.model)
    whole.model.lm_head.weight.data[0, 0] += 1
    assert weights_digest(model.model) != weights_digest(whole.model)


def test_its_sites_are_checked_too(spread):
    model, _ = spread
    model.family = model.family.__class__(**{**vars(model.family), "mlp": "mlp.up_proj"})
    with pytest.raises(InputError, match=r"mlp_0 is not found where .*: its shape is \(13, 6, 48\)"):
        model.check_sites()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_of_offloaded_models_finds_what_the_other_finds(tiny_model, family):
    model = tiny_model(family)
    sites = [*model.sites(), *model.head_sites()]
    (acts, effects, logits), (wanted, has_gradient, plain) = (
        model_checks._by_rows(model, sites),
        model_checks._by_gradients(model, sites),
    )
    assert effects == has_gradient == dict.fromkeys(sites, True)
    # the first row of the one is never edited; the other adds zero
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)
    for site in sites:
        torch.testing.assert_close(acts[site], wanted[site], atol=1e-5, rtol=1e-5)


def test_the_check_of_offloaded_models_sees_when_an_edit_has_no_effect():
    model = make_model("llama")
    model.model.lm_head.weight.data.zero_()
    sites = model.sites()
    assert model_checks._by_rows(model, sites)[1] == dict.fromkeys(sites, False)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_that_is_one_only_and_a_map_are_told_before_anything_loads(tmp_path, device):
    path = tmp_path / "run.yaml"
    path.write_text(f"device: {device}\ndevice_map: auto\n")
    with pytest.raises(
        InputError, match=rf"run.yaml:2: device_map: found 'auto'; .* device is {device}; set device: cuda"
    ):
        load(path)
    path.write_text("device_map: everywhere\n")
    with pytest.raises(
        InputError, match=r"device_map: found 'everywhere'; allowed is auto, balanced or sequential or n"
    ):
        load(path)


def test_a_map_where_there_is_no_cuda_is_told(llama_folder):
    with pytest.raises(InputError, match=r"device_map: balanced spreads a model over CUDA .* run on cpu here; set"):
        loading.load(str(llama_folder), "auto", "float32", "balanced")


def test_a_map_and_several_processes_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "run.yaml").write_text("device_map: auto\n")
    assert inference_main(["--config", str(tmp_path / "run.yaml")]) == 2
    assert "device_map: found auto with 2 processes; each would spread" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "local", "shown", "expected"),
    [("1", "3", 4, "cuda"), ("4", "3", 4, "cuda:3"), ("4", "3", 1, "cuda:0"), ("4", "", 4, "cuda")],
)
def test_each_process_has_a_cuda_device_of_its_own(monkeypatch, size, local, shown, expected):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", size), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    for configured in ("auto", "cuda"):
        assert loading.resolve_device(configured) == torch.device(expected)
    assert loading.resolve_device("cpu") == torch.device("cpu")

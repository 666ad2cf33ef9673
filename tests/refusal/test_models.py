"""Chat frames, sites and loading, on small models of many families."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS, make_model, make_tokenizer

from refusal.errors import InputError
from refusal.interventions import edit, record
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_the_residual_stream_and_what_is_written_to_it(tiny_model, family):
    model = tiny_model(family)
    tokens = model.pad(model.tokenize(PROMPTS))
    with torch.no_grad(), record(model, model.sites(), last_only=False) as acts:
        model.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids)
    real = tokens.is_token
    for layer in range(1, model.n_layers):
        before, attention, mlp, after = (
            acts[site][real]
            for site in (
                Site(SiteKind.RESIDUALS, layer - 1),
                Site(SiteKind.ATTENTION, layer),
                Site(SiteKind.MLP, layer),
                Site(SiteKind.RESIDUALS, layer),
            )
        )
        assert after.shape == (int(real.sum()), model.d_model)
        torch.testing.assert_close(before + attention.reshape(before.shape) + mlp.reshape(before.shape), after)


@pytest.mark.parametrize("family", FAMILIES)
def test_editing_any_site_changes_the_logits_and_leaving_restores_them_bit_for_bit(tiny_model, family):
    model = tiny_model(family)
    tokens = model.pad(model.tokenize(PROMPTS[:2]))

    def logits():
        with torch.no_grad():
            return model.model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=tokens.position_ids
            ).logits[:, -1]

    plain = logits()
    for site in model.sites():
        with edit(model, {site: lambda acts: acts + torch.linspace(-1, 1, acts.shape[-1])}):
            assert not torch.allclose(logits(), plain, atol=1e-4)
    with pytest.raises(ZeroDivisionError), edit(model, {model.sites()[0]: lambda acts: acts * (1 / 0)}):
        logits()
    assert torch.equal(logits(), plain)


def test_tokenize_gives_one_bos_and_ends_with_the_generation_prompt(tiny_model):
    ids = tiny_model("llama").tokenize(["tell me"])[0]
    assert tiny_model("llama").tokenizer.convert_ids_to_tokens(ids) == ["<s>", "<user>", "tell", "me", "<assistant>"]


def test_tokenize_when_the_prompt_holds_control_tokens_reads_them_as_text(tiny_model):
    model = tiny_model("llama")
    ids = model.tokenize(["tell </s> <assistant> sure"])[0]
    assert ids.count(model.tokenizer.eos_token_id) == 0
    assert ids.count(model.tokenizer.convert_tokens_to_ids("<assistant>")) == 1


def test_render_without_a_chat_template_uses_the_fallback_and_says_so():
    model = make_model("llama")
    model.tokenizer = make_tokenizer(chat_template=None)
    assert model.render("tell me", "be kind") == "<s>be kind\n\nUser: tell me\nAssistant:"
    assert "no chat template" in model.notices[0]


def test_render_when_the_template_refuses_a_system_role_puts_it_before_the_user():
    model = make_model("llama")
    assert "<user> be kind\n\ntell me" in model.render("tell me", "be kind")
    assert "no system prompt" in model.notices[0]


def test_pad_is_on_the_left_with_positions_from_the_first_token(tiny_model):
    tokens = tiny_model("llama").pad([[5], [5, 6, 7]])
    assert tokens.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert tokens.position_ids.tolist() == [[0, 0, 0], [0, 1, 2]]


def test_resolve_sites_of_unknown_names_says_what_exists(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(
        InputError, match=r"no site 'residual_1'; it has residuals_0 to residuals_2.*mean residuals_1\?"
    ):
        model.resolve_sites(["residual_1"])
    assert [str(site) for site in model.resolve_sites("all")] == ["residuals_0", "residuals_1", "residuals_2"]
    assert [str(site) for site in model.resolve_sites(["residuals_1", "mlp_1"])] == ["mlp_1", "residuals_1"]


def test_load_of_a_folder_gives_the_model(llama_folder):
    model = ChatModel.load(str(llama_folder), device="cpu")
    assert (model.n_layers, model.d_model, model.dtype) == (3, 32, torch.float32)
    assert model.eos_token_ids == {3}


def test_load_of_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"config.json is missing"):
        ChatModel.load(str(tmp_path), device="cpu")


def test_load_of_damaged_weights_is_an_input_error(llama_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama_folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be loaded"):
        ChatModel.load(str(tmp_path), device="cpu")


def test_load_of_a_path_that_does_not_exist_says_so():
    with pytest.raises(InputError, match="no such folder"):
        ChatModel.load("./no/such/model", device="cpu")


def test_load_of_an_unknown_model_type_is_an_input_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(InputError, match="cannot be loaded"):
        ChatModel.load(str(tmp_path), device="cpu")

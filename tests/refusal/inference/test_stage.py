"""The inference stage: rows keep their ids, kills cost nothing, mistakes are told before anything runs."""

from __future__ import annotations

import errno
import json
import threading

import pytest
import torch
from tiny_models import make_model

from refusal.artefacts import ResultPaths
from refusal.capture import capture
from refusal.config import load
from refusal.errors import InputError
from refusal.inference import stage as inference
from refusal.inference.stage import draw_prompts, run_inference, that_fit
from refusal.models import ChatModel
from refusal.prompts import DatasetLabel, Draw, Prompt, PromptSource
from refusal.schemas import EvaluationResults, ModelOutputs, RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore, ActivationWriter

MODEL = "planted/partial"
SHARD = 12


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(inference, "SHARD_PROMPTS", SHARD)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"{{dataset_dir: embedded, num_samples_per_category: 4, models: [{MODEL}], device: cpu, max_new_tokens: 8, "
        "activation_layers: [residuals_1, mlp_1, attention_3, residuals_3]}"
    )
    return load(path)


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def undisturbed(config, tmp_path):
    paths = ResultPaths(tmp_path / "undisturbed")
    run_inference(config, MODEL, paths)
    return paths


def test_stored_activations_answers_and_labels_belong_to_their_prompts(config, undisturbed):
    prompts = draw_prompts(config).prompts
    model = ChatModel.load(MODEL, device="cpu")
    store = ActivationStore(undisturbed.activations(MODEL))
    labels = RefusalLabels.load(undisturbed.refusal_labels(MODEL))
    outputs = ModelOutputs.load(undisturbed.model_outputs(MODEL))
    assert sorted(store.prompt_ids) == sorted(prompt.id for prompt in prompts)
    assert [label.id for label in labels.prompts] == [output.id for output in outputs.outputs]
    prefix = list(labels.openers.answer_prefix)
    for prompt, label, output in zip(prompts, labels.prompts, outputs.outputs, strict=True):
        (ids,) = model.tokenize([prompt.text])
        alone = capture(model, [[*ids, *prefix]], store.sites, config.max_new_tokens)
        for site in store.sites:
            acts = store.readout(site, [prompt.id])
            torch.testing.assert_close(acts, alone.readout[site], atol=1e-5, rtol=1e-5)
        assert (output.id, output.prompt) == (prompt.id, prompt.text)
        assert output.response == model.tokenizer.decode([*prefix, *alone.answers[0]], skip_special_tokens=True)
        assert output.finish_reason == ("eos" if alone.ended[0] else "length")
        assert (label.id, label.category, label.dataset_label) == (prompt.id, prompt.category, prompt.dataset_label)
        assert label.first_token_id == int(alone.first_token.ids[0, 0])


def test_every_artefact_is_there_and_the_store_holds_the_sites_asked_for(config, undisturbed):
    store = ActivationStore(undisturbed.activations(MODEL))
    assert [str(site) for site in store.sites] == ["mlp_1", "residuals_1", "attention_3", "residuals_3"]
    assert len(json.loads((undisturbed.activations(MODEL) / "index.json").read_text())["shards"]) == 4
    assert EvaluationResults.load(undisturbed.evaluation(MODEL)).model == MODEL
    labels = RefusalLabels.load(undisturbed.refusal_labels(MODEL))
    assert {label.behaviour for label in labels.prompts} == {"refused", "complied"}
    assert set(labels.openers.refusal).isdisjoint(labels.openers.compliance)
    refused = [label.first_token_score for label in labels.prompts if label.behaviour == "refused"]
    complied = [label.first_token_score for label in labels.prompts if label.behaviour == "complied"]
    assert min(refused) > max(complied)


@pytest.mark.parametrize("n_written", [0, 1, 3])
@pytest.mark.parametrize("is_cut_inside", [False, True])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(
    config, undisturbed, tmp_path, monkeypatch, n_written, is_cut_inside
):
    paths = ResultPaths(tmp_path / "killed")
    written = []
    write = ActivationWriter.write

    def write_until_killed(self, index, shard):
        if len(written) == n_written:
            if is_cut_inside:
                (self.folder / f"shard-{index:05d}.safetensors").write_bytes(b"half a sha")
            raise KeyboardInterrupt
        written.append(index)
        write(self, index, shard)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationWriter, "write", write_until_killed)
        if is_cut_inside:
            paths.activations(MODEL).mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt):
            run_inference(config, MODEL, paths)
        assert not paths.refusal_labels(MODEL).exists()

    def write_and_note(self, index, shard):
        written.append(index)
        write(self, index, shard)

    monkeypatch.setattr(ActivationWriter, "write", write_and_note)
    run_inference(config, MODEL, paths)
    assert written == list(range(4))  # no shard twice
    assert files_under(paths.root) == files_under(undisturbed.root)


def test_a_shard_is_written_while_the_next_is_computed(config, undisturbed, tmp_path, monkeypatch):
    write = ActivationWriter.write
    captured = [threading.Event() for _ in range(4)]
    still = iter(captured)

    def note_capture(*arguments):
        next(still).set()
        return capture(*arguments)

    def write_when_the_next_was_begun(self, index, shard):
        assert index == 3 or captured[index + 1].wait(timeout=20)
        write(self, index, shard)

    monkeypatch.setattr(inference, "capture", note_capture)
    monkeypatch.setattr(inference, "shared_answer_prefix", lambda *rest: ())
    monkeypatch.setattr(ActivationWriter, "write", write_when_the_next_was_begun)
    paths = ResultPaths(tmp_path / "slow disk")
    run_inference(config, MODEL, paths)
    assert files_under(paths.root) == files_under(undisturbed.root)


def test_a_full_disk_stops_the_run_with_what_was_complete(config, undisturbed, tmp_path, monkeypatch):
    write = ActivationWriter.write

    def write_until_full(self, index, shard):
        if index == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, index, shard)

    paths = ResultPaths(tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr(ActivationWriter, "write", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            run_inference(config, MODEL, paths)
    assert len(list(paths.activations(MODEL).glob("shard-*.json"))) == 2
    run_inference(config, MODEL, paths)
    assert files_under(paths.root) == files_under(undisturbed.root)


def test_the_index_says_how_much_was_padding(config, undisturbed):
    index = json.loads((undisturbed.activations(MODEL) / "index.json").read_text())
    model = ChatModel.load(MODEL, device="cpu")
    token_ids = model.tokenize([prompt.text for prompt in draw_prompts(config).prompts])
    assert index["tokens"]["needed"] == sum(map(len, token_ids))
    shards = [sorted(map(len, token_ids))[first : first + SHARD] for first in range(0, len(token_ids), SHARD)]
    assert index["tokens"]["computed"] == sum(len(shard) * shard[-1] for shard in shards)


def test_running_again_captures_nothing_and_changes_nothing(config, undisturbed, monkeypatch):
    before = files_under(undisturbed.root)

    def never(self, index, shard):
        raise AssertionError

    monkeypatch.setattr(ActivationWriter, "write", never)
    run_inference(config, MODEL, undisturbed)
    assert files_under(undisturbed.root) == before


def test_when_memory_runs_out_ids_stay_aligned(config, undisturbed, tmp_path, monkeypatch):
    def only_three_fit(model, token_ids, *rest):
        if len(token_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(model, token_ids, *rest)

    monkeypatch.setattr(inference, "capture", only_three_fit)
    paths = ResultPaths(tmp_path / "small")
    run_inference(config, MODEL, paths)
    one, other = (ActivationStore(each.activations(MODEL)) for each in (undisturbed, paths))
    for site in one.sites:
        torch.testing.assert_close(other.readout(site, one.prompt_ids), one.readout(site), atol=1e-5, rtol=1e-5)
    assert paths.model_outputs(MODEL).read_bytes() == undisturbed.model_outputs(MODEL).read_bytes()


def test_activations_that_are_not_finite_stop_the_run_and_keep_what_was_captured(config, tmp_path, monkeypatch):
    n_shards = []

    def broken_later(model, token_ids, *rest):
        found = capture(model, token_ids, *rest)
        n_shards.append(1)
        if len(n_shards) == 2:
            found.readout[Site.parse("mlp_1")][0] = float("inf")
        return found

    monkeypatch.setattr(inference, "capture", broken_later)
    paths = ResultPaths(tmp_path / "broken")
    with pytest.raises(InputError, match=r"planted/partial: activations of 1 prompts at mlp_1 .* set dtype: float32"):
        run_inference(config, MODEL, paths)
    assert sorted(path.name for path in paths.activations(MODEL).iterdir()) == [
        "shard-00000.json",
        "shard-00000.safetensors",
    ]


def test_a_changed_configuration_captures_anew_and_leaves_no_old_shard(config, undisturbed, tmp_path):
    path = tmp_path / "run.yaml"
    run_inference(load(path, ["num_samples_per_category=2", "max_new_tokens=3"]), MODEL, undisturbed)
    fresh = ResultPaths(tmp_path / "fresh")
    run_inference(load(path, ["num_samples_per_category=2", "max_new_tokens=3"]), MODEL, fresh)
    assert files_under(undisturbed.root) == files_under(fresh.root)


def test_prompts_longer_than_the_context_are_left_out_and_told():
    model = make_model("llama")  # 128 positions
    categories = ["privacy", "privacy", "violence"]
    prompts = tuple(
        Prompt(f"p{row}", "", category, DatasetLabel.SAFE, PromptSource.SAFE_80K)
        for row, category in enumerate(categories)
    )
    drawn = Draw(prompts, ("before",))
    assert that_fit(model, drawn, [[5] * 97, [5] * 4, [5] * 97], 28)[0] is drawn
    kept, tokens = that_fit(model, drawn, [[5] * 98, [5] * 4, [5] * 97], 28)
    assert [prompt.id for prompt in kept.prompts] == ["p1", "p2"]
    assert [len(ids) for ids in tokens] == [4, 97]
    said = "1 prompts do not fit the context of llama: prompt p0 has 98 tokens, max_new_tokens is 28, the limit is 128"
    assert kept.notices[0] == "before"
    assert kept.notices[1].startswith(said)
    with pytest.raises(InputError, match=r"2 prompts do not fit .*p2 has 120 tokens.*; nothing is left of violence"):
        that_fit(model, drawn, [[5] * 101, [5] * 4, [5] * 120], 28)


def test_a_site_the_model_lacks_is_told_before_anything_runs(config, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError

    monkeypatch.setattr(inference, "capture", never)
    with pytest.raises(InputError, match=r"no site 'residuals_99'; it has residuals_0 to residuals_"):
        run_inference(load(tmp_path / "run.yaml", ["activation_layers=[residuals_99]"]), MODEL, ResultPaths(tmp_path))
    assert not (tmp_path / "activations").exists()

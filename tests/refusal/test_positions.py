"""Positions before the readout: what is captured equals a plain forward pass, and reads back in any order from disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_models import FAMILIES, PROMPTS, make_model

from refusal.artefacts import ResultPaths
from refusal.capture import Selector, capture, check_finite
from refusal.config import CaptureConfig, SaeConfig, load
from refusal.errors import ArtefactError, InputError
from refusal.inference import stage as inference
from refusal.inference.stage import draw_prompts, plan_shards, run_inference
from refusal.interventions import record
from refusal.models import ChatModel
from refusal.positions import READOUT_ONLY, Keep, MappedRows, PositionIndex, Positions, count_rows, first_own_position
from refusal.schemas import RefusalLabels
from refusal.sites import Site, SiteKind
from refusal.store import ActivationStore, ActivationWriter

MODEL = "planted/partial"
SITE = Site.parse("residuals_0")
SITES = ["mlp_1", "residuals_1", "residuals_2"]


def plain_hidden_states(model, ids):
    """Return the residual stream after each block but the last, one prompt alone, without padding or cache."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return {Site(SiteKind.RESIDUALS, layer): hidden[layer + 1][0] for layer in range(model.n_layers - 1)}


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "bloom"])
def test_captured_positions_are_those_of_a_plain_pass_without_padding_first_token_and_readout(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)  # of five lengths: all but one are padded
    sites = [site for site in model.sites() if site.kind is SiteKind.RESIDUALS][:-1]
    found = capture(model, token_ids, sites, 4, Keep(others=True))
    rows = [(prompt, token) for prompt, ids in enumerate(token_ids) for token in range(1, len(ids) - 1)]
    assert list(zip(found.positions.prompt.tolist(), found.positions.token.tolist(), strict=True)) == rows
    assert len(rows) == sum(count_rows(token_ids, 1))
    for prompt, ids in enumerate(token_ids):
        plain = plain_hidden_states(model, ids)
        for site in sites:
            mine = found.positions.acts[site][found.positions.prompt == prompt]
            torch.testing.assert_close(mine, plain[site][1:-1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.readout[site][prompt], plain[site][-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_and_means_of_every_kind_of_site_are_those_of_each_prompt_alone(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    sites = sorted([*model.sites(), *model.head_sites()])
    found = capture(model, token_ids, sites, 1, Keep(offsets=(-2, -4), mean=True, first=2))
    assert found.positions is None
    assert set(found.elsewhere) == {-2, -4, "mean"}
    for prompt, ids in enumerate(token_ids):
        with torch.no_grad(), record(model, sites, last_only=False) as plain:
            model.model(input_ids=torch.tensor([ids]), use_cache=False)
        for site in sites:
            acts = plain[site][0]
            for at, wanted in ((-2, acts[-2]), (-4, acts[-4]), ("mean", acts[2:].mean(0))):
                torch.testing.assert_close(found.elsewhere[at][site][prompt], wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.readout[site][prompt], acts[-1], atol=1e-5, rtol=1e-5)


def test_a_mean_does_not_feel_what_padding_holds(tiny_model):
    model = tiny_model("llama")
    tokens = model.pad(model.tokenize(PROMPTS))
    value = torch.randn(*tokens.input_ids.shape, 4)
    value[~tokens.is_token] = float("nan")
    kept = Selector(tokens, Keep(mean=True))(value)
    own = [value[row][tokens.is_token[row]][1:].mean(0) for row in range(len(value))]
    torch.testing.assert_close(kept.one_each[:, 1], torch.stack(own))


def test_what_is_captured_has_the_dtype_of_the_model_and_its_values():
    model = make_model("qwen3")
    model.model.bfloat16()
    ids = model.tokenize(PROMPTS[:1])
    found = capture(model, ids, model.sites(), 1, Keep(offsets=(-2,), mean=True))
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor(ids), output_hidden_states=True).hidden_states[1][0]
    site = Site.parse("residuals_0")
    assert found.readout[site].dtype == found.elsewhere["mean"][site].dtype == torch.bfloat16
    assert torch.equal(found.readout[site][0], hidden[-1])
    assert torch.equal(found.elsewhere[-2][site][0], hidden[-2])
    assert torch.equal(found.elsewhere["mean"][site][0], hidden[1:].float().mean(0).bfloat16())


def test_asking_for_positions_changes_nothing_else(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    without, found = (
        capture(model, token_ids, model.sites(), 4, keep) for keep in (READOUT_ONLY, Keep(others=True, first=2))
    )
    assert without.positions is None
    assert without.answers == found.answers
    assert all(torch.equal(without.readout[site], found.readout[site]) for site in model.sites())


def test_a_position_that_is_not_finite_is_told_with_its_prompt(tiny_model):
    model = tiny_model("llama")
    found = capture(model, model.tokenize(PROMPTS), model.sites(), 1, Keep(others=True))
    row = int((found.positions.prompt == 1).nonzero()[0])
    found.positions.acts[Site.parse("mlp_1")][row, 0] = float("nan")
    with pytest.raises(InputError, match=r"1 prompts at mlp_1 are not finite \(e.g. p1\)"):
        check_finite(found, ["p0", "p1", "p2", "p3", "p4"], model)


def test_the_beginning_that_all_prompts_share_is_left_out():
    assert first_own_position([[1, 5, 6, 7, 8], [1, 5, 9]]) == 2
    assert first_own_position([[4, 5], [6, 7]]) == 1
    assert first_own_position([[1, 5, 6]]) == 3
    assert count_rows([[1, 5, 6, 7, 8], [1, 5, 9]], 2) == [2, 0]
    assert count_rows([[1]], 1) == [0]


def test_shards_hold_what_fits_and_every_prompt_once(monkeypatch):
    monkeypatch.setattr(inference, "SHARD_PROMPTS", 3)
    monkeypatch.setattr(inference, "SHARD_BYTES", 10)
    assert plan_shards([0, 1, 2, 3, 4], [0] * 5) == [[0, 1, 2], [3, 4]]
    assert plan_shards([4, 3, 2, 1, 0], [1, 1, 9, 5, 99]) == [[4], [3], [2, 1], [0]]


def test_parts_are_joined_with_prompts_numbered_through_and_let_go():
    parts = [
        Positions({SITE: torch.full((2, 3), 1.0)}, torch.tensor([0, 2]), torch.tensor([1, 1])),
        Positions({SITE: torch.full((1, 3), 2.0)}, torch.tensor([1]), torch.tensor([4])),
    ]
    joined = Positions.cat(parts, [3, 2])
    assert joined.prompt.tolist() == [0, 2, 4]
    assert joined.token.tolist() == [1, 1, 4]
    assert joined.acts[SITE][:, 0].tolist() == [1, 1, 2]
    assert not any(part.acts for part in parts)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "SHARD_PROMPTS", 12)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"{{dataset_dir: embedded, num_samples_per_category: 4, models: [{MODEL}], device: cpu, max_new_tokens: 4, "
        f"activation_layers: [{', '.join(SITES)}], sae: {{positions: all}}}}"
    )
    return load(path)


@pytest.fixture
def stored(config, tmp_path):
    paths = ResultPaths(tmp_path / "results")
    run_inference(config, MODEL, paths)
    return paths


def files_under(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tokens_of(config, model, paths):
    prefix = RefusalLabels.load(paths.refusal_labels(MODEL)).openers.answer_prefix
    prompts = draw_prompts(config).prompts
    ids = model.tokenize([prompt.text for prompt in prompts])
    return {prompt.id: [*row, *prefix] for prompt, row in zip(prompts, ids, strict=True)}


def test_stored_positions_belong_to_their_prompts_and_tokens(config, stored):
    model = ChatModel.load(MODEL, device="cpu")
    token_ids = tokens_of(config, model, stored)
    first = first_own_position(list(token_ids.values()))
    assert first > 1, "the frame that all prompts share is more than its first token"
    store = ActivationStore(stored.activations(MODEL))
    asked = sorted(token_ids)[5:25][::-1]
    index = store.position_index(asked)
    wanted = [(place, token) for place, each in enumerate(asked) for token in range(first, len(token_ids[each]) - 1)]
    assert list(zip(index.prompt.tolist(), index.token.tolist(), strict=True)) == wanted
    site = Site.parse("residuals_2")
    rows = store.positions(site, index)
    assert len(rows) == len(wanted)
    everything = rows.take(torch.arange(len(rows)))
    for place, each in enumerate(asked):
        plain = plain_hidden_states(model, token_ids[each])[site]
        torch.testing.assert_close(everything[index.prompt == place], plain[first:-1], atol=1e-4, rtol=1e-4)
    some = torch.randint(len(rows), (50,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows.take(some), everything[some])


def test_neither_the_batch_nor_the_shards_nor_the_order_of_prompts_change_the_rows(
    config, stored, tmp_path, monkeypatch
):
    other = ResultPaths(tmp_path / "other")
    monkeypatch.setattr(inference, "SHARD_BYTES", 20_000)
    run_inference(load(tmp_path / "run.yaml", ["batch_size=3", "shuffle=false"]), MODEL, other)
    stores = [ActivationStore(paths.activations(MODEL)) for paths in (stored, other)]
    assert len(list(stores[0].folder.glob("positions-*"))) < len(list(stores[1].folder.glob("positions-*")))
    ids = sorted(stores[0].prompt_ids)
    one, two = (store.position_index(ids) for store in stores)
    assert torch.equal(one.prompt, two.prompt)
    assert torch.equal(one.token, two.token)
    everything = torch.arange(len(one.prompt))
    for site in stores[0].sites:
        first, second = (
            store.positions(site, index).take(everything) for store, index in zip(stores, (one, two), strict=True)
        )
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_the_rest_of_the_store_is_that_of_a_run_without_positions(config, stored, tmp_path):
    plain = ResultPaths(tmp_path / "plain")
    run_inference(load(tmp_path / "run.yaml", ["sae.positions=readout"]), MODEL, plain)
    assert not ActivationStore(plain.activations(MODEL)).has_positions
    assert not list(plain.activations(MODEL).glob("positions-*"))
    for path in plain.activations(MODEL).glob("*.safetensors"):
        assert path.read_bytes() == (stored.activations(MODEL) / path.name).read_bytes()
    assert plain.refusal_labels(MODEL).read_bytes() == stored.refusal_labels(MODEL).read_bytes()


@pytest.mark.parametrize("n_written", [0, 2])
def test_a_run_killed_between_the_files_of_a_shard_ends_with_the_same_bytes(
    config, stored, tmp_path, monkeypatch, n_written
):
    paths, written, save = ResultPaths(tmp_path / "killed"), [], Positions.tensors

    def until_killed(self):
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(1)
        return save(self)

    with monkeypatch.context() as patch:
        patch.setattr(Positions, "tensors", until_killed)
        with pytest.raises(KeyboardInterrupt):
            run_inference(config, MODEL, paths)
    written.clear()
    write = ActivationWriter.write
    monkeypatch.setattr(ActivationWriter, "write", lambda *a: (written.append(1), write(*a)))
    run_inference(config, MODEL, paths)
    assert len(written) == 4 - n_written
    assert files_under(paths.root) == files_under(stored.root)


def test_a_damaged_file_of_positions_is_captured_again_and_never_read(config, stored, monkeypatch):
    before = files_under(stored.root)
    path = stored.activations(MODEL) / "positions-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))
    store = ActivationStore(stored.activations(MODEL))
    with pytest.raises(ArtefactError, match=r"positions-00001.safetensors: damaged.*run_inference"):
        store.position_index(store.prompt_ids)
    written, write = [], ActivationWriter.write
    monkeypatch.setattr(ActivationWriter, "write", lambda *a: (written.append(a[1]), write(*a)))
    run_inference(config, MODEL, stored)
    assert written == [1]
    assert files_under(stored.root) == before
    path.unlink()
    store = ActivationStore(stored.activations(MODEL))
    with pytest.raises(ArtefactError, match=r"positions-00001.safetensors: not found"):
        store.position_index(store.prompt_ids)


def test_a_disk_without_room_is_told_before_anything_is_captured(config, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "free_bytes", lambda path: 5 << 10)
    paths = ResultPaths(tmp_path / "full")
    with pytest.raises(InputError, match=r"sae.positions: all positions .* take \d+ KiB in .* where 5 KiB are free"):
        run_inference(config, MODEL, paths)
    assert not paths.activations(MODEL).exists()


def numbers(n):
    return torch.zeros(n, dtype=torch.long), torch.arange(n)


def written(path, acts):
    found = Positions({SITE: acts}, *numbers(len(acts)))
    save_file({"before": torch.zeros(3), **found.tensors()}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_any_dtype_are_read_as_float32_also_beside_an_empty_file(tmp_path, dtype):
    acts = torch.randn(7, 5).to(dtype)
    paths = [written(tmp_path / "x", acts[:0]), written(tmp_path / "y", acts)]
    rows = MappedRows(paths, SITE, PositionIndex.of([numbers(0), numbers(7)]))
    assert torch.equal(rows.take(torch.tensor([6, 0, 6])), acts[[6, 0, 6]].float())
    assert rows.take(torch.arange(0)).shape == (0, 5)


def test_reading_some_rows_holds_no_others(tmp_path):
    paths = [written(tmp_path / name, torch.randn(500, 64)) for name in "xy"]
    rows = MappedRows(paths, SITE, PositionIndex.of([numbers(500), numbers(500)]))
    for array, _ in rows._maps:
        assert isinstance(array.base, np.memmap), "on the file, not a copy of it"
    assert rows.take(torch.arange(490, 510)).untyped_storage().nbytes() == 20 * 64 * 4


def test_a_run_keeps_the_extra_sites_and_positions_that_it_is_asked_for(config, tmp_path):
    capture_section = CaptureConfig(sites=("heads", "attention_1"), positions=("mean", -2, -1))
    asked = config.model_copy(update={"capture": capture_section, "sae": SaeConfig()})
    paths = ResultPaths(tmp_path / "extra")
    run_inference(asked, MODEL, paths)
    store = ActivationStore(paths.activations(MODEL))
    model = ChatModel.load(MODEL)
    assert [str(site) for site in store.sites] == SITES
    heads = [Site(SiteKind.HEADS, layer) for layer in range(model.n_layers)]
    assert store.all_sites == sorted([*store.sites, Site.parse("attention_1"), *heads])
    assert set(store.elsewhere) == {-2, "mean"}
    assert not store.has_positions
    token_ids = tokens_of(asked, model, paths)
    first = first_own_position(list(token_ids.values()))
    for prompt_id in store.prompt_ids[::7]:
        with torch.no_grad(), record(model, store.all_sites, last_only=False) as plain:
            model.model(input_ids=torch.tensor([token_ids[prompt_id]]), use_cache=False)
        for site in store.all_sites:
            acts = plain[site][0]
            assert store.width(site) == acts.shape[-1]
            for at, wanted in (("readout", acts[-1]), (-2, acts[-2]), ("mean", acts[first:].mean(0))):
                found = store.readout(site, [prompt_id], at=at)[0]
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ArtefactError, match=r"no activations at -3; kept are readout, -2, mean; add it to capture"):
        store.readout(store.sites[0], at=-3)


def test_an_offset_before_the_beginning_of_a_prompt_names_the_prompt(config, tmp_path):
    asked = config.model_copy(update={"capture": CaptureConfig(positions=(-500,)), "sae": SaeConfig()})
    with pytest.raises(
        InputError, match=r"capture\.positions: -500 is before the beginning of prompt .* allowed are -1"
    ):
        run_inference(asked, MODEL, ResultPaths(tmp_path / "short"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sites": ["head_3"]}, "did you mean heads_3"),
        ({"sites": ["neurons_1"]}, "allowed are residuals_N, mlp_N, attention_N and heads_N, or a kind alone"),
        ({"sites": ["mpl"]}, "did you mean mlp"),
        ({"positions": [0]}, "positions"),
        ({"positions": "last"}, "positions"),
        ({"positions": []}, "positions"),
    ],
)
def test_wrong_capture_settings_are_told(tmp_path, given, said):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"capture": given}))
    with pytest.raises(InputError, match=said):
        load(path)

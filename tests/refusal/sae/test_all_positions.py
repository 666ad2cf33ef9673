"""Training on all positions: who is drawn how often, from memory or from disk, and what it is judged on."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from known_features import D_MODEL, make_rows

from refusal.artefacts import ResultPaths
from refusal.config import Config, load
from refusal.errors import ArtefactError, InputError
from refusal.inference import stage as inference
from refusal.inference.stage import run_inference
from refusal.positions import MappedRows
from refusal.sae import all_positions, normalise, rows
from refusal.sae.all_positions import READOUT_SHARE, PromptRows, split_positions
from refusal.sae.checkpoint import Checkpoint
from refusal.sae.jobs import ModelSaes
from refusal.sae.recipe import Recipe
from refusal.sae.records import SaeMetrics
from refusal.sae.rows import RowSplit, RowStream, TensorRows, block_shuffled, split_rows
from refusal.sae.trainer import Task, train_stack
from refusal.sae.training import train_model_saes
from refusal.schemas import RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore

MODEL = "planted/partial"
N_PROMPTS, CATEGORIES = 60, ["a", "a", "b"] * 20
IDS = [f"p{row}" for row in range(N_PROMPTS)]
SPLIT = split_rows(IDS, CATEGORIES, CATEGORIES, 0)


def uneven_prompts(split=SPLIT):
    """Return further rows in which prompt i has i % 5 of them: some have none."""
    return torch.cat([torch.full((int(place) % 5,), int(place)) for place in split.train]).long()


def drawn_shares(split, keys):
    sums: dict[object, float] = {}
    for key, weight in zip(keys, split.weights.tolist(), strict=True):
        sums[key] = sums.get(key, 0) + weight / float(split.weights.sum())
    return sums


def test_readout_rows_have_their_share_and_prompts_and_categories_stay_balanced():
    prompt = uneven_prompts()
    split = split_positions(SPLIT, N_PROMPTS, prompt, D_MODEL)
    n_readout = len(SPLIT.train)
    assert float(split.weights.mean()) == pytest.approx(1)
    assert float(split.weights[:n_readout].sum() / split.weights.sum()) == pytest.approx(READOUT_SHARE)
    # among readout rows categories weigh the same; among the others each prompt weighs as its readout row does
    by_category = drawn_shares(split, [*(CATEGORIES[row] for row in SPLIT.train.tolist()), *[None] * len(prompt)])
    assert by_category["a"] == pytest.approx(by_category["b"])
    by_prompt = drawn_shares(split, [*[None] * n_readout, *prompt.tolist()])
    weight_of = dict(zip(SPLIT.train.tolist(), SPLIT.weights.tolist(), strict=True))
    ratios = [share / weight_of[place] for place, share in by_prompt.items() if place is not None]
    assert max(ratios) == pytest.approx(min(ratios))


def test_training_is_judged_on_readout_rows_alone():
    split = split_positions(SPLIT, N_PROMPTS, uneven_prompts(), D_MODEL)
    assert torch.equal(split.judged, SPLIT.train)
    assert torch.equal(split.heldout, SPLIT.heldout)
    assert torch.equal(SPLIT.judged, SPLIT.train)
    assert set(split.train.tolist()).isdisjoint(SPLIT.heldout.tolist())


def test_prompts_without_a_position_of_their_own_are_told():
    with pytest.raises(InputError, match=r"sae.positions: all: no prompt has .* set sae.positions: readout"):
        split_positions(SPLIT, N_PROMPTS, torch.empty(0, dtype=torch.long), D_MODEL)


@given(
    weights=st.lists(st.floats(0, 5), min_size=1, max_size=60),
    n_judged=st.integers(0, 10),
    is_streamed=st.booleans(),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_an_epoch_draws_each_row_as_often_as_its_weight_says_to_within_one(
    weights, n_judged, is_streamed, batch_size, seed
):
    numbers = torch.arange(len(weights)) * 3 + 1
    weight = torch.tensor([1.0, *weights[1:]], dtype=torch.float64)
    split = RowSplit(numbers, weight, numbers[:0], min(n_judged, len(weights)), is_streamed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK_ROWS", 4)
        patch.setattr(rows, "WINDOW_ROWS", 8)
        epoch = RowStream(split, batch_size, torch.Generator().manual_seed(seed))._epoch()
        stream = RowStream(split, batch_size, torch.Generator().manual_seed(seed))
        batches = stream.next(3)
        state = {name: tensor.clone() for name, tensor in stream.state().items()}
        following = stream.next(4)
        stream.restore(state)
        assert torch.equal(stream.next(4), following)
    counts = torch.bincount(epoch, minlength=int(numbers[-1]) + 1)
    assert not counts[[number for number in range(len(counts)) if number not in numbers.tolist()]].any()
    assert bool(((counts[numbers] - weight).abs() < 1).all())
    n = min(batches.numel(), len(epoch))
    assert torch.equal(batches.flatten()[:n], epoch[:n])


def test_a_block_shuffle_keeps_windows_to_few_blocks_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 10)
    monkeypatch.setattr(rows, "WINDOW_ROWS", 50)
    shuffled = block_shuffled(torch.arange(1000), torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort().values, torch.arange(1000))
    windows = [set((window // 10).tolist()) for window in shuffled.split(50)]
    assert {len(blocks) for blocks in windows} == {5}
    assert sum(max(blocks) - min(blocks) > 20 for blocks in windows) > 10, "blocks come from everywhere"
    again = block_shuffled(torch.arange(1000), torch.Generator().manual_seed(0))
    assert torch.equal(shuffled, again)


def test_rows_of_both_kinds_are_taken_in_the_order_asked_for():
    acts = torch.randn(10, 4)
    source = PromptRows(TensorRows(acts[:3]), TensorRows(acts[3:]))
    asked = torch.tensor([9, 0, 3, 2, 2, 8])
    assert torch.equal(source.take(asked), acts[asked])
    assert (len(source), source.d_model) == (10, 4)


class Stopped(Exception):
    """Stands for a kill."""


class Counted:
    """Rows of which it is noted how many are asked for at once."""

    def __init__(self, acts):
        self.inner, self.most = TensorRows(acts), 0

    def __len__(self):
        return len(self.inner)

    @property
    def d_model(self):
        return self.inner.d_model

    def take(self, asked):
        self.most = max(self.most, len(asked))
        return self.inner.take(asked)


def train(others, checkpoint=None, stop_after=None):
    done = 0

    def on_steps(n):
        nonlocal done
        done += n
        if stop_after is not None and done > stop_after:
            raise Stopped

    acts = torch.cat([make_rows(), make_rows(2)])
    split = split_positions(SPLIT, N_PROMPTS, SPLIT.train[torch.arange(500) % len(SPLIT.train)].sort().values, D_MODEL)
    source = PromptRows(TensorRows(acts[:N_PROMPTS]), others(acts[N_PROMPTS : N_PROMPTS + 500]))
    recipe = Recipe(32, 2, 60, 32, 0.01, n_evaluations=12)
    return source, train_stack([Task("s", seed, source) for seed in (0, 1)], split, recipe, on_steps, checkpoint)


def same(one, two):
    for first, second in zip(one, two, strict=True):
        assert first.history == second.history
        for name, tensor in first.sae.named_parameters():
            assert torch.equal(tensor, dict(second.sae.named_parameters())[name])


@pytest.fixture
def streaming(monkeypatch):
    """Let nothing be small enough to be kept in memory or shuffled whole."""
    monkeypatch.setattr(normalise, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(normalise, "CHUNK_ROWS", 50)
    monkeypatch.setattr(all_positions, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_ROWS", 8)
    monkeypatch.setattr(rows, "WINDOW_ROWS", 64)


def test_streamed_rows_are_never_asked_for_many_at_once(streaming):
    source, _ = train(Counted)
    assert source.others.most <= 50


def test_a_streamed_training_that_is_stopped_goes_on_to_the_same_bits(streaming, tmp_path):
    _, undisturbed = train(TensorRows)
    with pytest.raises(Stopped):
        train(TensorRows, Checkpoint(tmp_path, "abc", seconds=0), 30)
    _, resumed = train(TensorRows, Checkpoint(tmp_path, "abc", seconds=0))
    same(undisturbed, resumed)


def test_reading_batches_again_trains_the_same_as_keeping_the_rows(monkeypatch):
    _, kept = train(TensorRows)
    monkeypatch.setattr(normalise, "RESIDENT_BYTES", 0)
    _, read = train(TensorRows)
    same(kept, read)


# The stage -----------------------------------------------------------------------------------------------------------

SITE = Site.parse("residuals_1")


@pytest.fixture(scope="session")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "SHARD_PROMPTS", 30)
        run_inference(configured(folder), MODEL, ResultPaths(folder / "results"))
    return folder


def configured(folder, **sae) -> Config:
    content = {
        "num_samples_per_category": 10,
        "models": [MODEL],
        "device": "cpu",
        "max_new_tokens": 12,
        "activation_layers": ["residuals_0", "residuals_1"],
        "result_dir": str(folder / "results"),
        "sae": {"positions": "all", "seeds": [0], "steps": 90, "d_sae": 32, "batch_size": 32, **sae},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return load(path)


@pytest.fixture
def folder(captured, tmp_path):
    shutil.copytree(captured / "results", tmp_path / "results")
    return tmp_path


def trained_files(folder):
    saes = ResultPaths(folder / "results").saes(MODEL)
    return {str(path.relative_to(saes)): path.read_bytes() for path in saes.rglob("*") if path.is_file()}


def test_rows_from_disk_are_those_of_the_training_prompts_in_the_order_of_prompt_and_token(folder, monkeypatch):
    config, paths = configured(folder), ResultPaths(folder / "results")
    stage = ModelSaes(config, MODEL, paths)
    readout = stage.rows(SITE)
    one_by_one = []
    for place in stage.split.train.tolist():
        index = stage.store.position_index([stage.prompt_ids[place]])
        assert index.token.tolist() == sorted(set(index.token.tolist()))
        one_by_one.append(stage.store.positions(SITE, index).take(torch.arange(len(index.token))))
    wanted = torch.cat([readout.acts, *one_by_one])
    kept = stage.training_rows(SITE, readout)
    monkeypatch.setattr(all_positions, "IN_MEMORY_BYTES", 0)
    mapped = ModelSaes(config, MODEL, paths).training_rows(SITE, readout)
    assert isinstance(kept.others, TensorRows)
    assert isinstance(mapped.others, MappedRows)
    some = torch.randint(len(wanted), (300,), generator=torch.Generator().manual_seed(0))
    for source in (kept, mapped):
        assert len(source) == len(wanted)
        assert torch.equal(source.take(torch.arange(len(wanted))), wanted)
        assert torch.equal(source.take(some), wanted[some])
    heldout = {stage.prompt_ids[place] for place in stage.split.heldout.tolist()}
    trained = {stage.prompt_ids[stage.split.train[place]] for place in stage.others.prompt.tolist()}
    assert heldout
    assert heldout.isdisjoint(trained)
    assert torch.equal(stage.drawn.heldout, stage.split.heldout)


def test_the_stage_says_what_it_trained_on_and_measures_readout_rows(folder):
    train_model_saes(configured(folder), MODEL, ResultPaths(folder / "results"))
    metrics = SaeMetrics.load(ResultPaths(folder / "results").sae(MODEL, SITE) / "metrics.json")
    assert metrics.settings["positions"] == "all"
    labels = RefusalLabels.load(ResultPaths(folder / "results").refusal_labels(MODEL))
    assert metrics.train.n_rows + metrics.heldout.n_rows == len(labels.prompts)
    assert len(metrics.heldout_prompt_ids) == metrics.heldout.n_rows


@pytest.mark.usefixtures("streaming")
def test_a_stage_killed_while_it_streams_ends_with_the_same_bytes(folder, monkeypatch):
    config, paths = configured(folder), ResultPaths(folder / "results")
    train_model_saes(config, MODEL, paths)
    undisturbed = trained_files(folder)
    for path in sorted(paths.saes(MODEL).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    save = Checkpoint.save

    def saved_and_killed(self, state):
        save(self, state)
        if state.values["step"] >= 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", saved_and_killed)
        with pytest.raises(KeyboardInterrupt):
            train_model_saes(config, MODEL, paths)
    assert list(paths.saes(MODEL).glob("checkpoint_*"))
    train_model_saes(config, MODEL, paths)
    assert trained_files(folder) == undisturbed


@pytest.mark.parametrize("positions", ["readout", "all"])
def test_a_store_that_grew_since_a_training_was_stopped_is_told_and_nothing_is_overwritten(
    folder, monkeypatch, positions
):
    config, paths = configured(folder, positions=positions, d_sae="auto"), ResultPaths(folder / "results")
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    save = Checkpoint.save

    def saved_and_killed(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", saved_and_killed)
        with pytest.raises(KeyboardInterrupt):
            train_model_saes(config, MODEL, paths)
    before = trained_files(folder)
    run_inference(config.model_copy(update={"num_samples_per_category": 14}), MODEL, paths)
    said = r"checkpoint_.*stopped on \d+ rows of 100 prompts .*are now \d+ rows of 140 prompts .*delete it"
    with pytest.raises(ArtefactError, match=said):
        train_model_saes(config, MODEL, paths)
    assert trained_files(folder) == before
    run_inference(config, MODEL, paths)
    train_model_saes(config, MODEL, paths)  # put back, it goes on
    assert not list(paths.saes(MODEL).glob("checkpoint_*"))


def test_all_positions_of_a_store_that_has_only_readouts_is_told_and_nothing_is_written(tmp_path):
    paths = ResultPaths(tmp_path / "results")
    run_inference(configured(tmp_path, positions="readout"), MODEL, paths)
    with pytest.raises(
        ArtefactError, match=r"holds the readout position of each prompt only.*with sae.positions: all.*readout"
    ):
        train_model_saes(configured(tmp_path), MODEL, paths)
    assert not paths.saes(MODEL).exists()


def test_a_store_of_all_positions_serves_readout_training_too(folder):
    paths = ResultPaths(folder / "results")
    assert ActivationStore(paths.activations(MODEL)).has_positions
    train_model_saes(configured(folder, positions="readout"), MODEL, paths)
    metrics = SaeMetrics.load(paths.sae(MODEL, SITE) / "metrics.json")
    assert metrics.settings["positions"] == "readout"


def test_a_damaged_shard_stops_training_and_leaves_what_is_there(folder):
    config, paths = configured(folder), ResultPaths(folder / "results")
    train_model_saes(config, MODEL, paths)
    before = trained_files(folder)
    path = paths.activations(MODEL) / "positions-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ArtefactError, match=r"positions-00000.safetensors: damaged"):
        train_model_saes(configured(folder, k=2), MODEL, paths)
    assert trained_files(folder) == before

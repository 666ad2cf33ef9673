"""What an SAE cannot be trained on: each is told in one message, and nothing that is there is overwritten."""

from __future__ import annotations

import pytest
import torch
from known_features import make_rows

from refusal.artefacts import ResultPaths
from refusal.config import Config, SaeConfig
from refusal.errors import ArtefactError, InputError
from refusal.sae.checkpoint import Checkpoint, State
from refusal.sae.records import SaeMetrics
from refusal.sae.training import train_model_saes
from refusal.schemas import Openers, PromptLabel, RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationWriter, Answer, Shard, TopLogits

SITE, MODEL = Site.parse("residuals_0"), "made/up"
N = 200
SMALL = {"d_sae": 8, "k": 2, "steps": 40, "batch_size": 16, "lr": 0.01, "seeds": (0,)}


def write_activations(paths: ResultPaths, acts: torch.Tensor) -> None:
    """Write what the inference stage would leave: activations of a site, and what the model did."""
    ids = [f"p{row:04d}" for row in range(len(acts))]
    writer = ActivationWriter(paths.activations(MODEL), plan="x")
    first = TopLogits(torch.zeros(len(acts), 1, dtype=torch.long), torch.zeros(len(acts), 1), torch.zeros(len(acts)))
    writer.write(0, Shard(tuple(Answer(each, "Sure.", "eos", 0) for each in ids), {SITE: acts}, first))
    writer.finish(1)
    labels = tuple(
        PromptLabel(
            id=each,
            category=("privacy", "violence")[row % 2],
            dataset_label="safe",
            source="80k",
            behaviour="complied",
            rule="opening",
            first_token_id=0,
            first_token_score=None,
        )
        for row, each in enumerate(ids)
    )
    openers = Openers(
        refusal=(), compliance=(), refusal_text=(), compliance_text=(), ambiguous=(), reason="it never refuses"
    )
    RefusalLabels.build(model=MODEL, openers=openers, notices=(), prompts=labels).save(paths.refusal_labels(MODEL))


def train(paths: ResultPaths, **sae: object) -> None:
    train_model_saes(Config(models=(MODEL,), sae=SaeConfig(**{**SMALL, **sae})), MODEL, paths)


def content(paths: ResultPaths) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(paths.saes(MODEL).rglob("*")) if path.is_file()}


@pytest.fixture
def trained(tmp_path):
    """Return a result folder with an SAE in it, and what its files hold."""
    paths = ResultPaths(tmp_path)
    write_activations(paths, make_rows()[:N])
    train(paths)
    before = content(paths)
    names = {path.rpartition("/")[2] for path in before}
    assert names == {
        "README.md",
        "cfg.json",
        "metrics.json",
        "residuals_0_training_history.json",
        "sae_weights.safetensors",
    }
    return paths, before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda acts: acts.index_fill(0, torch.arange(30), float("nan")), r"residuals_0.*30 activation rows hold NaN"),
        (lambda acts: acts.index_fill(1, torch.tensor([3]), float("inf")), r"residuals_0.*200 activation rows hold"),
        (lambda acts: torch.full_like(acts, 2.5), r"residuals_0.*the same"),
    ],
    ids=["NaN", "infinity", "constant"],
)
def test_activations_that_teach_nothing_are_told_and_the_old_sae_stays(trained, spoil, message):
    paths, before = trained
    write_activations(paths, spoil(make_rows()[:N]))
    with pytest.raises(InputError, match=message):
        train(paths)
    assert content(paths) == before


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        ({"d_sae": "auto", "k": 500}, r"sae\.k: is 500, allowed are 1 to d_sae = 16; lower it or set it to auto"),
        (
            {"d_sae": 5000},
            r"sae\.d_sae: is 5000, but there are only 180 rows to train on; allowed are at most 4",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_and_the_old_sae_stays(trained, sae, message):
    paths, before = trained
    with pytest.raises(InputError, match=message):
        train(paths, **sae)
    assert content(paths) == before


def test_more_latents_asked_for_than_there_are_is_told_by_the_configuration():
    with pytest.raises(ValueError, match=r"k \(9\) is more than there are latents: allowed is 1 to d_sae \(8\)"):
        SaeConfig(d_sae=8, k=9)


def test_a_batch_larger_than_the_data_shrinks_and_says_so(tmp_path):
    paths = ResultPaths(tmp_path)
    write_activations(paths, make_rows()[:40])
    train(paths, batch_size=1000)
    metrics = SaeMetrics.load(paths.sae(MODEL, SITE) / "metrics.json")
    assert metrics.settings["batch_size"] == 36
    assert metrics.reasons["batch_size"] == "configured as 1000, shrunk to the 36 training rows there are"


def test_too_few_rows_are_told(tmp_path):
    paths = ResultPaths(tmp_path)
    write_activations(paths, make_rows()[:6])
    with pytest.raises(InputError, match=r"6 activation rows, at least 8 are needed; raise num_samples_per_category"):
        train(paths)
    assert not content(paths)


def test_the_checkpoint_of_another_configuration_is_left_alone(trained):
    paths, before = trained
    other = Checkpoint(paths.saes(MODEL), "f" * 64)
    other.save(State({"x": torch.zeros(2)}, {"step": 7}))
    kept = other.path.read_bytes()
    train(paths, steps=60)
    assert other.path.read_bytes() == kept
    assert SaeMetrics.load(paths.sae(MODEL, SITE) / "metrics.json").settings["steps"] == 60
    train(paths)
    assert {name: each for name, each in content(paths).items() if name != str(other.path)} == before


def test_a_checkpoint_that_belongs_to_other_settings_under_this_name_is_refused(trained, monkeypatch):
    paths, before = trained
    monkeypatch.setattr(
        Checkpoint, "path", property(lambda self: paths.saes(MODEL) / "checkpoint_0123456789abcdef.safetensors")
    )
    other = Checkpoint(paths.saes(MODEL), "f" * 64)
    other.save(State({"x": torch.zeros(2)}, {"step": 7}))
    kept = other.path.read_bytes()
    with pytest.raises(ArtefactError, match="belongs to a training with other settings; delete it"):
        train(paths, steps=60)
    assert other.path.read_bytes() == kept
    assert {name: each for name, each in content(paths).items() if name != str(other.path)} == before

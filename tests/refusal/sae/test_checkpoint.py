"""A training that is stopped and goes on ends with the same weights, to the last bit."""

from __future__ import annotations

import pytest
import torch
from known_features import make_rows

from refusal.errors import ArtefactError
from refusal.sae.checkpoint import Checkpoint
from refusal.sae.objectives import OBJECTIVES
from refusal.sae.recipe import Recipe
from refusal.sae.rows import TensorRows, split_rows
from refusal.sae.trainer import Task, train_stack

SPLIT = split_rows([f"p{row}" for row in range(600)], ["all"] * 600, ["a", "b"] * 300, 0)


class Stopped(Exception):
    """Stands for a kill."""


def train(architecture, checkpoint=None, stop_after=None, patience=2):
    done = 0

    def on_steps(n):
        nonlocal done
        done += n
        if stop_after is not None and done > stop_after:
            raise Stopped

    recipe = Recipe(32, 2, 200, 64, 0.01, n_evaluations=20, architecture=architecture, patience=patience)
    # other data: one of the two leaves the stack before the other
    rows = {"residuals_0": TensorRows(make_rows()), "residuals_1": TensorRows(make_rows(2) ** 2)}
    tasks = [Task(name, seed, source) for name, source in rows.items() for seed in (0, 1)]
    return train_stack(tasks, SPLIT, recipe, on_steps, checkpoint)


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_a_stopped_training_goes_on_to_the_same_bits(architecture, tmp_path):
    undisturbed = train(architecture)
    for stop_after in (40, 120):
        with pytest.raises(Stopped):
            train(architecture, Checkpoint(tmp_path, "abc", seconds=0), stop_after)
    checkpoint = Checkpoint(tmp_path, "abc", seconds=0)
    assert checkpoint.path.exists()
    resumed = train(architecture, checkpoint)
    for one, two in zip(undisturbed, resumed, strict=True):
        assert one.history == two.history
        assert one.best_step == two.best_step
        for name, tensor in one.sae.named_parameters():
            assert torch.equal(tensor, dict(two.sae.named_parameters())[name])


def test_a_damaged_checkpoint_is_named_and_nothing_is_overwritten(tmp_path):
    checkpoint = Checkpoint(tmp_path, "abc", seconds=0)
    with pytest.raises(Stopped):
        train("topk", checkpoint, 60)
    content = checkpoint.path.read_bytes()[:-100]
    checkpoint.path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"cannot be read as tensors.*delete it"):
        train("topk", checkpoint)
    assert checkpoint.path.read_bytes() == content


def test_a_checkpoint_of_other_settings_is_not_taken(tmp_path):
    other = Checkpoint(tmp_path, "a" * 16 + "1", seconds=0)
    with pytest.raises(Stopped):
        train("topk", other, 60)
    with pytest.raises(ArtefactError, match="other settings"):
        Checkpoint(tmp_path, "a" * 16 + "2").load()
    assert Checkpoint(tmp_path, "b").load() is None

"""Differences in means: the definition, the layers' convention, positions, sums over groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import PROMPTS

from refusal.directions import activations
from refusal.directions.activations import collect, positions_for, template_positions
from refusal.directions.candidates import Contrast, Direction, MeanDiffs, PromptActs, mean_diffs_of
from refusal.errors import InputError
from refusal.steering.run import Runs

IDS = tuple("abcde")
GROUPS = [0, 1, 0, -1, 1]


def passes(model, positions):
    """Return the input and the outputs of the blocks, prompt by prompt, from plain passes without padding."""
    found = []
    for ids in model.tokenize(PROMPTS):
        kept = []
        blocks = [model.site_module(site) for site in model.resolve_sites("all")]
        first = blocks[0].register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
        hooks = [
            block.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output)) for block in blocks
        ]
        with torch.no_grad():
            model.model(input_ids=torch.tensor([ids]))
        for hook in [first, *hooks]:
            hook.remove()
        kept = [each[0] if isinstance(each, tuple) else each for each in kept]
        found.append(torch.stack([each[0, list(positions)] for each in kept], dim=1).double())
    return torch.stack(found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_differences_in_means_are_those_of_the_definition_at_embeddings_and_after_blocks(tiny_model, family):
    model = tiny_model(family)
    positions = (-3, -2, -1)
    found = collect(Runs(model, batch_size=2), model.tokenize(PROMPTS), GROUPS, positions, IDS)
    plain = passes(model, positions)
    wanted = plain[[0, 2]].mean(0) - plain[[1, 4]].mean(0)
    diffs = found.sums.mean_diffs([0], [1], Contrast.BEHAVIOUR)
    assert diffs.values.dtype == torch.float64
    assert torch.allclose(diffs.embedding, wanted[:, 0], atol=1e-5)
    assert torch.allclose(diffs.values, wanted[:, 1:], atol=1e-5)
    assert (diffs.n_refused, diffs.n_complied, diffs.n_layers) == (2, 2, model.n_layers)
    assert torch.allclose(found.acts.values.double(), plain[:, :, 1:], atol=1e-5)
    of_rows = mean_diffs_of(found.acts, [0, 2], [1, 4], Contrast.BEHAVIOUR)
    assert torch.allclose(of_rows.values, diffs.values, atol=1e-5)


def test_pooling_weighs_prompts_and_not_groups():
    sums = activations.GroupSums(
        torch.tensor([[[[2.0]]], [[[30.0]]], [[[0.0]]]], dtype=torch.float64),
        torch.tensor([[[2.0]], [[30.0]], [[0.0]]], dtype=torch.float64),
        torch.tensor([1, 3, 2]),
        (-1,),
    )
    assert float(sums.mean_diffs([0, 1], [2], Contrast.BEHAVIOUR).values) == 8.0  # 32 / 4, not (2 + 10) / 2
    with pytest.raises(ValueError, match="0 refused and 2 complied"):
        sums.mean_diffs([], [2], Contrast.BEHAVIOUR)


def test_single_prompts_keep_the_readout_alone_where_memory_is_short(tiny_model, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(activations, "KEPT_BYTES", 1)
    found = collect(Runs(model), model.tokenize(PROMPTS), GROUPS, (-2, -1), IDS)
    assert found.acts.positions == (-1,)
    assert found.sums.positions == (-2, -1)
    assert torch.allclose(found.acts.values.double(), passes(model, (-1,))[:, :, 1:], atol=1e-5)


@pytest.mark.parametrize(
    ("contrast", "label", "behaviour", "side"),
    [
        (Contrast.BEHAVIOUR, "safe", "refused", True),
        (Contrast.BEHAVIOUR, "toxic", "complied", False),
        (Contrast.BEHAVIOUR, "toxic", "partly_refused", None),
        (Contrast.DATASET_LABEL, "toxic", "refused", True),
        (Contrast.DATASET_LABEL, "toxic", "complied", None),
        (Contrast.DATASET_LABEL, "safe", "complied", False),
        (Contrast.DATASET_LABEL, "safe", "refused", None),
        (Contrast.DATASET_LABEL, "safe", "cannot_tell", None),
    ],
)
def test_the_published_contrast_is_filtered_by_what_the_model_did(contrast, label, behaviour, side):
    assert contrast.side(label, behaviour) is side


def test_template_positions_are_the_common_end(tiny_model):
    token_ids = tiny_model("llama").tokenize(PROMPTS)
    assert positions_for(token_ids, "auto") == (-1,)
    assert positions_for(token_ids, 2) == (-2, -1)
    assert template_positions([[4, 5, 6]] * 3) == 3
    assert template_positions([[1], [2]]) == 1
    with pytest.raises(InputError, match=r"directions\.n_positions: found 9, and the shortest prompt has 4 tokens"):
        positions_for(token_ids, 9)


def test_a_direction_knows_its_norm_its_unit_and_where_it_was_read():
    diffs = MeanDiffs(
        torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        (-1,),
        5,
        6,
        Contrast.BEHAVIOUR,
        "privacy",
    )
    direction = diffs.direction(-1, 0)
    assert direction.norm == 5
    assert direction.unit.tolist() == [0.6, 0.8]
    assert (str(direction.site), direction.read_at) == ("residuals_0", "residuals_0, position -1")
    assert direction.label == "refused - complied, privacy"
    assert diffs.direction(-1, 1).unit.tolist() == [0, 0], "a zero vector has no direction, and no nan"
    start = diffs.direction(-1, -1)
    assert (start.raw.tolist(), start.read_at) == ([1, 0], "embeddings, position -1")
    with pytest.raises(ValueError, match="no site"):
        _ = start.site


@pytest.mark.parametrize("positions", [(0,), (-1, -2), (-1, -1), (-2, -1)])
def test_positions_that_cannot_be_are_refused(positions):
    with pytest.raises(ValueError, match=r"positions are|rows of values"):
        MeanDiffs(torch.zeros(1, 1, 1), torch.zeros(1, 1), positions, 1, 1, Contrast.BEHAVIOUR)


def test_rows_of_activations_keep_their_ids():
    acts = PromptActs(torch.arange(6.0).reshape(3, 1, 2, 1), (-1,), ("a", "b", "c"))
    some = acts.rows(np.array([2, 0]))
    assert some.prompt_ids == ("c", "a")
    assert some.at(-1, 1).tolist() == [[5.0], [1.0]]
    assert isinstance(Direction(torch.ones(2), -1, 0, "x").norm, float)

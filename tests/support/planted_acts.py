"""Activations, behaviour and refusal metric of prompts of the shipped models, as the inference stage finds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from refusal.capture import capture
from refusal.directions.products import Sides
from refusal.labels import classify
from refusal.metric import RefusalMetric, learn_openers
from refusal.models import ChatModel
from refusal.prompts import draw, load_prompts
from refusal.readout import ReadoutRunner


@dataclass(frozen=True)
class PlantedActs:
    """One shipped model's prompts."""

    acts: np.ndarray
    """[prompt, layer, d_model]"""
    sides: Sides
    metric: RefusalMetric
    runner: ReadoutRunner
    model: ChatModel


@cache
def planted_acts(name: str, n_per_category: int = 40) -> PlantedActs:
    """Return the prompts of a shipped model that it refused or complied with."""
    model = ChatModel.load(f"planted/{name}")
    prompts = draw(load_prompts("embedded", "80k"), "all", n_per_category, seed=0, shuffle=False).prompts
    token_ids = model.tokenize([prompt.text for prompt in prompts])
    sites = model.resolve_sites("all")
    with torch.no_grad():
        found = capture(model, token_ids, sites, 10)
    behaviour = classify([model.tokenizer.decode(answer, skip_special_tokens=True) for answer in found.answers])
    metric = learn_openers([answer[0] for answer in found.answers], behaviour)
    assert isinstance(metric, RefusalMetric)
    kept = [row for row, did in enumerate(behaviour) if did in ("refused", "complied")]
    names = tuple(sorted({prompt.category for prompt in prompts}))
    sides = Sides(
        np.array([names.index(prompts[row].category) for row in kept]),
        np.array([behaviour[row] == "refused" for row in kept]),
        names,
    )
    acts = torch.stack([found.readout[site].float() for site in sites], dim=1)[kept].numpy()
    return PlantedActs(acts, sides, metric, ReadoutRunner(model, [token_ids[row] for row in kept]), model)

"""Is it refusal, or something else? The refusal direction beside the direction of another contrast, layer by layer.

1. The contrast set's direction is the difference in means of its two classes, as the refusal direction is of refused
   and complied prompts; both from activations at the readout position of the chat frame.
2. Their cosine with bootstrap interval (the prompts of both are resampled), noise ceiling and the ratio of the two.
3. Null: the labels of the contrast set are shuffled. Its texts keep what they have in common, so the null shows how
   large a cosine the geometry of the residual stream gives to any split of these texts; it is far wider than that of
   random vectors, as activations fill few of their dimensions.
4. Cosines with the *raw* means of the two classes: these hold what all texts have in common, which is not what a class
   is about. A direction with a large cosine to a raw mean says little (anisotropy).

Source: control directions, Arditi et al. arXiv 2406.11717 section 3; anisotropy, Ethayarajh arXiv 1909.00512;
p-values, Phipson and Smyth 2010.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal.batch_memory import budget_for
from refusal.batches import Batcher
from refusal.capture import capture, check_finite
from refusal.directions.contrast import ContrastSet
from refusal.directions.geometry_records import LayerSpecificity, Specificity
from refusal.directions.products import Products, Sides, differences, products
from refusal.errors import InputError
from refusal.measures import measure, or_none
from refusal.models import ChatModel
from refusal.schemas import Measure
from refusal.stats import permutation_p
from refusal.untrusted.files import shown

Acts = Float[np.ndarray, "prompt d_model"]


@torch.no_grad()
def capture_contrast(
    model: ChatModel,
    texts: Sequence[str],
    *,
    system_prompt: str | None = None,
    answer_prefix: Sequence[int] = (),
    batch_size: str | int = "auto",
) -> Float[Tensor, "prompt layer d_model"]:
    """Return the activations of texts at the readout position after every block, float32 on the CPU.

    Args:
        model: The model.
        texts: What a user says; each is put into the chat frame as a prompt of the study is.
        system_prompt: As in the study.
        answer_prefix: Tokens that the model's answers begin with, as `Openers.answer_prefix` holds them.
        batch_size: Prompts per batch; auto: as memory allows.

    Raises:
        InputError: A text is too long, activations are not finite, or memory runs out with a single text.
    """
    token_ids = contrast_tokens(model, texts, system_prompt, answer_prefix)
    order = sorted(range(len(token_ids)), key=lambda row: (len(token_ids[row]), row))
    sites = model.resolve_sites("all")
    acts = torch.empty(len(texts), len(sites), model.d_model)

    def run(rows: range) -> None:
        """Capture one batch into its places."""
        chosen = [order[row] for row in rows]
        captured = capture(model, [token_ids[row] for row in chosen], sites, 1)
        check_finite(captured, [f"{row + 1} of the contrast set" for row in chosen], model)
        acts[chosen] = torch.stack([captured.readout[site].float() for site in sites], dim=1)

    batcher = Batcher(budget_for(model, batch_size, sites, 1))
    batcher.run([len(token_ids[row]) for row in order], run)
    return acts


def contrast_tokens(
    model: ChatModel, texts: Sequence[str], system_prompt: str | None, answer_prefix: Sequence[int]
) -> list[list[int]]:
    """Return the tokens of texts in the chat frame, up to the readout position.

    Raises:
        InputError: A text does not fit the context of the model.
    """
    found = [[*ids, *answer_prefix] for ids in model.tokenize(list(texts), system_prompt)]
    limit = model.context_length
    lengths = [len(ids) for ids in found]
    if limit is not None and lengths and max(lengths) > limit:
        longest = lengths.index(max(lengths))
        raise InputError(
            f"directions.contrasts: the text that begins {shown(texts[longest][:40])} has {lengths[longest]} tokens in "
            f"the chat frame; {model.name} reads at most {limit}; shorten or remove it"
        )
    return found


def specificity(
    contrast: ContrastSet,
    contrast_acts: Float[np.ndarray, "prompt layer d_model"] | Float[Tensor, "prompt layer d_model"],
    refusal_acts: Float[np.ndarray, "row _ _"] | Float[Tensor, "row _ _"],
    is_refused: Bool[np.ndarray, " row"],
    *,
    draws: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
) -> Specificity:
    """Return what the refusal direction shares with a contrast set's direction, at every layer.

    Args:
        contrast: The two classes.
        contrast_acts: Activations of its texts.
        refusal_acts: Activations of the study's prompts `[row, layer, d_model]` at the same position, all categories.
        is_refused: What the model did with each of them.
        draws: Bootstrap draws.
        permutations: Shuffles of the contrast set's labels; 0: no test.
        seed: Decides both.
    """
    ours, theirs = np.asarray(refusal_acts), np.asarray(contrast_acts)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"activations of {theirs.shape[1:]} cannot be compared with those of {ours.shape[1:]}")
    drawn = (draws, permutations, seed)
    layers = tuple(
        _layer(layer, (theirs[:, layer], contrast.is_positive), (ours[:, layer], is_refused), drawn)
        for layer in range(ours.shape[1])
    )
    return Specificity(
        name=contrast.name,
        positive=contrast.positive,
        negative=contrast.negative,
        n_positive=contrast.n_positive,
        n_negative=contrast.n_negative,
        n_refused=int(is_refused.sum()),
        n_complied=int((~is_refused).sum()),
        draws=draws,
        permutations=permutations,
        notices=(*contrast.notices, *_alike(contrast, theirs[:, -1])),
        layers=layers,
    )


def _alike(contrast: ContrastSet, last: Acts) -> list[str]:
    """Return a notice when different texts are the same to the model, as words that it does not know are."""
    n_different = len(np.unique(last, axis=0))
    if n_different == len(last):
        return []
    return [
        f"contrast {contrast.name}: {len(last)} texts are only {n_different} different ones to the model, most likely "
        "because it does not know their words"
    ]


Classes = tuple[Float[np.ndarray, "_ d_model"], Bool[np.ndarray, " _"]]
"""Activations at one layer, and which of them are of the first class."""


def _layer(layer: int, contrast: Classes, refusal: Classes, drawn: tuple[int, int, int]) -> LayerSpecificity:
    draws, permutations, seed = drawn
    acts = np.concatenate([contrast[0], refusal[0]]).astype(np.float64)
    is_first = np.concatenate([contrast[1], refusal[1]])
    sides = Sides(np.repeat([0, 1], [len(contrast[0]), len(refusal[0])]), is_first, ("contrast", "refusal"))
    weights = sides.bootstrap(draws, np.random.default_rng([seed, 8]))
    resampled = products(acts, sides, weights)
    point, resampled = (each.only(resampled.has_signal) for each in (products(acts, sides), resampled))
    of_contrast, of_refusal = differences(acts, sides)
    cosine = float(point.cosine[0, 0, 1])
    null = shuffled_cosines(*contrast, of_refusal, permutations, np.random.default_rng([seed, 9]))
    band = np.quantile(null, [0.025, 0.975]) if len(null) else np.full(2, np.nan)
    raw = [_raw_means(acts, sides, of, (point, resampled), weights) for of in (0, 1)]
    return LayerSpecificity(
        layer=layer,
        norm=float(np.linalg.norm(of_contrast)),
        cosine=measure(cosine, resampled.cosine[:, 0, 1], len(acts), "one of the two differences in means is zero"),
        ceiling=_ceiling(point),
        ratio=measure(point.ratio[0, 0, 1], resampled.ratio[:, 0, 1], len(acts)),
        null_low=or_none(band[0]),
        null_high=or_none(band[1]),
        p=permutation_p(cosine, null, "two-sided") if len(null) and np.isfinite(cosine) else None,
        mean_positive=raw[0][0],
        mean_negative=raw[0][1],
        refusal_mean_positive=raw[1][0],
        refusal_mean_negative=raw[1][1],
    )


def shuffled_cosines(
    acts: Acts,
    is_positive: Bool[np.ndarray, " prompt"],
    direction: Float[np.ndarray, " d_model"],
    n_draws: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " draw"]:
    """Return the cosines of a direction with the differences in means of shuffled classes of the same sizes."""
    acts = np.asarray(acts, dtype=np.float64)
    order = generator.permuted(np.tile(np.arange(len(acts)), (n_draws, 1)), axis=1)
    weight = np.where(is_positive, 1 / is_positive.sum(), -1 / (~is_positive).sum())[order]
    centred = acts - acts.mean(0)
    squared = np.einsum("dp,dp->d", weight @ (centred @ centred.T), weight)
    onto = weight @ (centred @ direction)
    scale = np.sqrt(np.maximum(squared, 0)) * np.linalg.norm(direction)
    return np.asarray(np.divide(onto, scale, out=np.zeros(n_draws), where=scale > 0))


def _raw_means(
    acts: Acts, sides: Sides, of: int, found: tuple[Products, Products], weights: Float[np.ndarray, "draw prompt"]
) -> tuple[Measure, Measure]:
    """Return the cosines of a direction (0: the contrast's, 1: refusal's) with the raw means of the two classes."""
    measures = []
    members = np.flatnonzero(sides.category == of)
    sign = np.where(sides.is_refused[members], 1.0, -1.0)
    sign /= np.array([len(sides.rows(of, refused=bool(side))) for side in sides.is_refused[members]])
    for is_positive in (True, False):
        rows = sides.rows(0, refused=is_positive)
        kernel, onto = acts[rows] @ acts[rows].T, acts[rows] @ acts[members].T
        cosines = []
        for products_of, drawn in zip(found, (np.ones((1, len(sides))), weights), strict=True):
            mean = drawn[:, rows] / len(rows)
            inner = np.einsum("dp,dp->d", mean @ onto, drawn[:, members] * sign)
            scale = np.sqrt(np.einsum("dp,dp->d", mean @ kernel, mean) * products_of.plain[:, of, of])
            cosines.append(np.divide(inner, scale, out=np.full(len(drawn), np.nan), where=scale > 0))
        measures.append(measure(cosines[0][0], cosines[1], len(sides), "a mean, or a difference in means, is zero"))
    return measures[0], measures[1]


def _ceiling(point: Products) -> float | None:
    both = point.ceiling[0]
    return float(np.sqrt(both[0] * both[1])) if (both > 0).all() else None

"""Would other prompts have given the same latents? Two SAEs trained on disjoint halves of the training prompts.

Seeds that agree may agree on an accident of the prompts. So at each site two SAEs of the full shape are trained, each
on half of the prompts from a start of its own, and their latents are matched as those of two seeds are. Both have half
the rows a latent that the real SAE has, so the figure is a lower bound of what two draws of prompts would give; they
take half the steps, the same number of passes. The SAEs themselves are not kept.

Source: Song et al. 2505.20254 (matching); split-half reliability is Spearman 1910, Br. J. Psychol. 3, 271.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.sae.checkpoint import Checkpoint
from refusal.sae.metrics import Stability, quality, stability
from refusal.sae.objectives import CPU
from refusal.sae.recipe import MAX_LATENTS_PER_ROW, Recipe
from refusal.sae.records import METRICS_FILE, HalfStability, SaeMetrics
from refusal.sae.rows import MIN_TRAIN_ROWS, RowSource, RowSplit, balanced_weights, thin_prompts
from refusal.sae.trainer import Task, train_stack


@dataclass(frozen=True)
class Halves:
    """The training rows of a source in two disjoint halves of equal size, category by category the same number."""

    rows: tuple[Int[Tensor, " row"], Int[Tensor, " row"]]
    """Numbers of the rows of each half."""
    categories: tuple[str, ...]
    """Category of each row, the same for both halves."""
    heldout: Int[Tensor, " _"]
    """Numbers of the rows that no SAE is trained on."""

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def split(self) -> RowSplit:
        """How the rows of `source` train: the half first, then the held-out ones."""
        n = len(self)
        heldout = torch.arange(n, n + len(self.heldout))
        return RowSplit(torch.arange(n), balanced_weights(self.categories), heldout)

    def source(self, whole: RowSource, half: int) -> RowSource:
        """Return the rows of one half and the held-out ones."""
        return _ChosenRows(whole, torch.cat([self.rows[half], self.heldout]))


@dataclass(frozen=True)
class _ChosenRows:
    """Some rows of a source under new numbers."""

    whole: RowSource
    chosen: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return self.whole.d_model

    def take(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
        """Return the rows asked for, in that order, as float32."""
        return self.whole.take(self.chosen[rows])


def split_halves(split: RowSplit, prompt_ids: Sequence[str], categories: Sequence[str], seed: int) -> Halves:
    """Return the training rows in two halves; rows of a prompt stay together.

    Args:
        split: Which rows train and which are held out.
        prompt_ids: The prompt of each row of the source.
        categories: Its category.
        seed: Decides who is in which half.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    for category in sorted({categories[row] for row in split.train.tolist()}):
        members = [row for row in split.train.tolist() if categories[row] == category]
        ids = sorted({prompt_ids[row] for row in members})
        first = set(thin_prompts(ids, [category] * len(ids), len(ids) // 2, seed))
        both = [[row for row in members if (prompt_ids[row] in first) is is_first] for is_first in (True, False)]
        n = min(map(len, both))
        for half, rows in zip(halves, both, strict=True):
            half += rows[:n]
    names = tuple(categories[row] for row in halves[0])
    return Halves((torch.tensor(halves[0]), torch.tensor(halves[1])), names, split.heldout)


def is_large_enough(halves: Halves, recipe: Recipe) -> bool:
    """Return whether each half has rows enough for an SAE of the full shape."""
    return len(halves) >= max(MIN_TRAIN_ROWS, -(-recipe.d_sae // MAX_LATENTS_PER_ROW))


def half_stability(
    tasks: Sequence[Task], halves: Halves, recipe: Recipe, checkpoint: Checkpoint, device: torch.device = CPU
) -> list[Stability]:
    """Return for each task how well the latents of an SAE of one half are found again in that of the other.

    Args:
        tasks: SAEs of one shape; each half trains with another start than the other and than the SAE itself.
        halves: Disjoint rows.
        recipe: How the full SAEs were trained.
        checkpoint: Where to note how far training is.
        device: Where to train.
    """
    of_halves = [
        Task(f"{task.name}/half_{half}", task.seed, halves.source(task.rows, half)) for task in tasks for half in (0, 1)
    ]
    batch_size, steps = min(recipe.batch_size, len(halves)), max(1, recipe.steps // 2)
    shorter = replace(recipe, batch_size=batch_size, steps=steps)
    trained = train_stack(of_halves, halves.split, shorter, checkpoint=checkpoint, device=device)
    rows = torch.cat(halves.rows)
    found = []
    for task, first, second in zip(tasks, trained[0::2], trained[1::2], strict=True):
        frequency = quality(first.sae, task.rows, rows, ["all"] * len(rows)).frequency
        found.append(stability(first.sae.W_dec, second.sae.W_dec, frequency))
    return found


def note_halves(
    folders: Sequence[Path],
    tasks: Callable[[], Sequence[Task]],
    halves: Halves,
    recipe: Recipe,
    scratch: Path,
    device: torch.device = CPU,
) -> None:
    """Write into the `metrics.json` of each of some SAEs how well SAEs of two halves agree, unless it is there.

    Args:
        folders: Where the SAEs lie; they train as one stack.
        tasks: Gives a task for each; asked only when there is something to do.
        halves: Disjoint rows.
        recipe: How the SAEs were trained.
        scratch: Where a checkpoint may be kept.
        device: Where to train.
    """
    paths = [folder / METRICS_FILE for folder in folders]
    metrics = [SaeMetrics.load(path) for path in paths]
    if all(each.half_stability is not None for each in metrics):
        return
    together = hashlib.sha256("".join(["halves", *(each.fingerprint for each in metrics)]).encode()).hexdigest()
    checkpoint = Checkpoint(scratch, together)
    found = half_stability(tasks(), halves, recipe, checkpoint, device)
    for path, each, agreement in zip(paths, metrics, found, strict=True):
        each.model_copy(update={"half_stability": HalfStability.of(len(halves), agreement)}).save(path)
    checkpoint.remove()

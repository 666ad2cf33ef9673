"""Trains SAEs: stacks of equal shape as one job, a seed honoured to the last bit, held-out rows deciding when to stop.

1. Normalise: x' = c (x - mu), mu the mean of the training rows and c such that a coordinate's mean square is 1. One
   learning rate then suits all sites and models. (b_dec starts at 0 there, which is the mean of the data.)
2. Start with random unit decoder rows and the encoder as their transpose, shorter. Every SAE draws its own; nothing is
   shared between seeds and nothing is taken from data points, since both make seeds agree without being right.
3. Step: a batch for each SAE, gradients (`gradients`), the share of the decoder's gradient along its rows taken out,
   Adam, decoder rows set back to unit norm. Learning rate: linear warm-up, constant, linear decay.
4. At regular steps FVU on fixed training rows and on held-out rows; the best weights are kept; an SAE whose held-out
   FVU has stopped falling is done, and leaves the stack.
5. Fold mu and c into the weights: the SAE acts on raw activations and its decoder rows have unit norm.

An SAE depends on its own rows, seed and recipe, not on what else is trained in its stack.
Source: Gao et al. 2406.04093, appendix A.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from refusal.errors import InputError
from refusal.sae.base import SparseAutoencoder
from refusal.sae.checkpoint import Checkpoint, State, pack, unpack
from refusal.sae.gradients import AuxK, Weights
from refusal.sae.normalise import NormalisedRows, fold
from refusal.sae.objectives import CPU, OBJECTIVES, decode
from refusal.sae.recipe import Recipe, check_recipe, learning_rate
from refusal.sae.rows import RowSource, RowSplit, RowStream, seeded_generator
from refusal.stopping import delayed

log = logging.getLogger(__name__)

BETAS = (0.9, 0.999)
ENCODER_START = 0.3
"""Norm of encoder rows at the start; below 1 because a short row turns faster under Adam's steps of fixed size."""
MAX_EVALUATION_ROWS = 2048
"""Rows of each split that evaluations during training look at."""
CHECKED_AT_ONCE = 256
"""Rows of them encoded at once."""
MAX_L0_EXCESS = 1.25
"""Times k that L0 may be for weights to count as the best; kinds that are steered to k begin far above it."""
PLACED = ("weights", "objective", "idle", "adam")
"""Parts of a checkpoint that live on the device."""
MIN_GAIN = 1e-3
"""Held-out FVU must fall by this share of itself to count as better."""


@dataclass(frozen=True)
class Task:
    """One SAE to train."""

    name: str
    """Its site; with the seed it decides the random draws."""
    seed: int
    rows: RowSource
    """All rows, of which the split says which train."""


class Evaluation(NamedTuple):
    """A point of the history."""

    step: int
    lr: float
    fvu_train: float
    """Fraction of variance unexplained on fixed training rows."""
    fvu_heldout: float | None
    """The same on held-out rows; None where there are none, or none that differ."""
    l0: float
    """Mean number of active latents on the training rows looked at."""
    dead_share: float
    """Share of latents not active for `Recipe.dead_rows`."""


@dataclass(frozen=True)
class Trained:
    """A trained SAE and how it came about."""

    task: Task
    sae: SparseAutoencoder
    history: tuple[Evaluation, ...]
    best_step: int
    """The step whose weights these are."""
    stop_reason: str
    """Why training ended, in words."""


def train_stack(
    tasks: Sequence[Task],
    split: RowSplit,
    recipe: Recipe,
    on_steps: Callable[[int], None] = lambda n: None,
    checkpoint: Checkpoint | None = None,
    device: torch.device = CPU,
) -> list[Trained]:
    """Return SAEs of one shape, trained as one job, in the order of `tasks`.

    Args:
        tasks: SAEs with rows of the same number and width.
        split: Which rows train; the same for all.
        recipe: How to train.
        on_steps: Called with the number of steps done since the last call, for a progress bar.
        checkpoint: Where to note how far training is; one that is there is gone on from, to the same result.
        device: Where to train.

    Raises:
        ArtefactError: The checkpoint is damaged.
        KeyboardInterrupt: The process was told to stop; the checkpoint holds the evaluation after that.
        InputError: The recipe does not fit the data, rows are not finite or all the same, or the loss diverges.
    """
    check_recipe(recipe, len(split.train))
    run = _StackRun(tasks, split, recipe, device)
    saved = None if checkpoint is None else checkpoint.load()
    names = ", ".join(sorted({task.name for task in tasks}))
    if saved is not None:
        step = run.restore(saved)
        log.info("%s: going on from step %d of %d", names, step, recipe.steps)
        on_steps(step)
    with delayed() as is_told_to_stop:
        log.info("%s: training %d SAEs", names, len(tasks))
        while run.active:
            on_steps(run.advance())
            if checkpoint is not None and run.active and (checkpoint.is_due() or is_told_to_stop()):
                checkpoint.save(run.state())
            if is_told_to_stop():
                break
    return [run.result(index) for index in range(len(tasks))]


def initial_weights(task: Task, d_sae: int) -> Weights:
    """Return a stack of one: random unit decoder rows, the encoder as their transpose times 0.3, biases 0."""
    draw = seeded_generator(task.seed, task.name, "init")
    dec = normalize(torch.randn(1, d_sae, task.rows.d_model, generator=draw), dim=-1)
    biases = (torch.zeros(1, d_sae), dec, torch.zeros(1, task.rows.d_model))
    return Weights(ENCODER_START * dec, *biases, torch.zeros(1, d_sae))


@dataclass
class _Progress:
    """One SAE's course."""

    history: list[Evaluation]
    best_weights: Weights
    best_fvu: float = float("inf")
    best_step: int = 0
    since_best: int = 0
    stop_reason: str = ""


class _StackRun:
    """One training of a stack: holds what changes from step to step."""

    def __init__(self, tasks: Sequence[Task], split: RowSplit, recipe: Recipe, device: torch.device) -> None:
        self._tasks = tasks
        self._recipe = recipe
        self._device = device
        self._data = NormalisedRows([task.rows for task in tasks], [task.name for task in tasks], split, device)
        self._streams = [
            RowStream(split, recipe.batch_size, seeded_generator(task.seed, task.name, "order")) for task in tasks
        ]
        self.active = list(range(len(tasks)))
        """Which tasks are still training."""
        in_bf16 = recipe.matmul_dtype == "bfloat16"
        self._objective = OBJECTIVES[recipe.architecture](recipe.k, len(tasks), device, in_bf16)
        starts = [self._objective.start(initial_weights(task, recipe.d_sae)) for task in tasks]
        self._progress = [_Progress([], start) for start in starts]
        self._weights = Weights(*(torch.cat(parts).to(device) for parts in zip(*starts, strict=True)))
        self._optimiser = torch.optim.Adam(self._weights, lr=recipe.lr, betas=BETAS, fused=True)
        self._idle = torch.zeros_like(self._weights.b_enc)
        self._dead_steps = max(1.0, recipe.dead_rows / recipe.batch_size)
        self._check_rows = (_spread(split.judged), _spread(split.heldout))
        points = range(1, recipe.n_evaluations + 1)
        self._evaluate_at = sorted({max(1, round(recipe.steps * i / recipe.n_evaluations)) for i in points})
        self._step = 0

    def advance(self) -> int:
        """Train to the next evaluation, evaluate, let SAEs leave that are done; return the number of steps."""
        start, self._step = self._step, next(point for point in self._evaluate_at if point > self._step)
        rows = torch.stack([self._streams[index].next(self._step - start) for index in self.active], dim=1)
        for step, batch in enumerate(rows, start):
            self._train_step(batch, learning_rate(self._recipe, step))
        self._evaluate()
        return self._step - start

    def _train_step(self, rows: Int[Tensor, "sae batch"], lr: float) -> None:
        acts = self._data.take(self.active, rows)
        dead = self._idle >= self._dead_steps
        aux = AuxK(self._recipe.auxk_coefficient, dead) if self._recipe.auxk_coefficient > 0 else None
        found = self._objective.step(self._weights, acts, aux)
        dec, d_dec = self._weights.dec, found.gradients.dec
        # The part of the gradient along a row would only change its norm, which is fixed.
        d_dec.addcmul_(torch.einsum("smd,smd->sm", d_dec, dec)[:, :, None], dec, value=-1)
        for weight, gradient in zip(self._weights, found.gradients, strict=True):
            weight.grad = gradient
        self._optimiser.param_groups[0]["lr"] = lr
        self._optimiser.step()
        self._optimiser.zero_grad()
        dec.div_(torch.linalg.vector_norm(dec, dim=-1, keepdim=True))
        self._weights.threshold.clamp_(min=0)
        self._idle = torch.where(found.fired > 0, 0.0, self._idle + 1)

    def _evaluate(self) -> None:
        (train, l0), (heldout, _) = (self._fvu(rows) for rows in self._check_rows)
        dead = (self._idle >= self._dead_steps).double().mean(1)
        lr = learning_rate(self._recipe, self._step - 1)
        staying = []
        for place, index in enumerate(self.active):
            # One held-out row, or several that are the same, have no variance to explain.
            out = float(heldout[place]) if bool(torch.isfinite(heldout[place])) else None
            point = Evaluation(self._step, lr, float(train[place]), out, float(l0[place]), float(dead[place]))
            if not torch.isfinite(train[place]):
                raise InputError(
                    f"SAE of {self._tasks[index].name}, seed {self._tasks[index].seed}: the loss is not finite at step "
                    f"{self._step} with a learning rate of {self._recipe.lr:g}; lower sae.lr or set it to auto"
                )
            self._note(self._progress[index], point, place)
            if not self._progress[index].stop_reason:
                staying.append(place)
        self._keep(staying)

    def _note(self, progress: _Progress, point: Evaluation, place: int) -> None:
        """Add a point to the history of the SAE at `place` of the stack and decide whether it is done."""
        progress.history.append(point)
        fvu = point.fvu_train if point.fvu_heldout is None else point.fvu_heldout
        is_last = self._step == self._recipe.steps
        if point.l0 > MAX_L0_EXCESS * self._recipe.k and not (is_last and progress.best_step == 0):
            pass  # not yet as sparse as asked for: a lower FVU says nothing
        elif fvu < progress.best_fvu * (1 - MIN_GAIN):
            complete = self._objective.complete(self._weights)
            weights = Weights(*(tensor[place : place + 1].cpu().clone() for tensor in complete))
            progress.best_weights, progress.best_fvu = weights, fvu
            progress.best_step, progress.since_best = point.step, 0
        else:
            progress.since_best += 1
        if is_last:
            progress.stop_reason = f"all {self._recipe.steps} steps done"
        elif progress.since_best >= self._recipe.patience:
            which = "training" if point.fvu_heldout is None else "held-out"
            progress.stop_reason = (
                f"{which} FVU best at step {progress.best_step}, not better in {progress.since_best} evaluations since"
            )

    def _keep(self, places: Sequence[int]) -> None:
        """Let all SAEs but those at `places` of the stack leave."""
        if len(places) == len(self.active):
            return
        old, chosen = self._optimiser, torch.tensor(places, dtype=torch.long, device=self._device)
        weights = Weights(*(tensor[chosen] for tensor in self._weights))
        self._optimiser = torch.optim.Adam(weights, lr=self._recipe.lr, betas=BETAS, fused=True)
        for before, after in zip(self._weights, weights, strict=True):
            state = old.state[before]
            moments = {key: state[key][chosen] for key in ("exp_avg", "exp_avg_sq")}
            self._optimiser.state[after] = {"step": state["step"], **moments}
        self._weights, self._idle = weights, self._idle[chosen]
        self._objective.keep(chosen)
        self.active = [self.active[place] for place in places]

    def state(self) -> State:
        """Return where the training stands."""
        tensors = pack("weights", self._weights._asdict()) | pack("objective", self._objective.learned)
        tensors["idle"] = self._idle.clone()
        for name, weight in self._weights._asdict().items():
            tensors |= pack(f"adam/{name}", self._optimiser.state[weight])
        for index, (stream, progress) in enumerate(zip(self._streams, self._progress, strict=True)):
            tensors |= pack(f"stream/{index}", stream.state())
            tensors |= pack(f"best/{index}", progress.best_weights._asdict())
        courses = [
            {
                "history": [list(point) for point in progress.history],
                "best_fvu": progress.best_fvu,
                "best_step": progress.best_step,
                "since_best": progress.since_best,
                "stop_reason": progress.stop_reason,
            }
            for progress in self._progress
        ]
        return State(tensors, {"step": self._step, "active": self.active, "courses": courses})

    def restore(self, state: State) -> int:
        """Go on where `state` was taken; return the number of steps done by then."""
        tensors, values = state.tensors, state.values
        placed = {name: tensor.to(self._device) for name, tensor in tensors.items() if name.split("/")[0] in PLACED}
        self._step, self.active = int(values["step"]), list(values["active"])
        self._weights = Weights(**unpack("weights", placed))
        self._idle = placed["idle"]
        self._objective.learned = unpack("objective", placed)
        self._optimiser = torch.optim.Adam(self._weights, lr=self._recipe.lr, betas=BETAS, fused=True)
        for name, weight in self._weights._asdict().items():
            self._optimiser.state[weight] = unpack(f"adam/{name}", placed)
        for index, (stream, course) in enumerate(zip(self._streams, values["courses"], strict=True)):
            stream.restore(unpack(f"stream/{index}", tensors))
            history = [Evaluation(*point) for point in course.pop("history")]
            self._progress[index] = _Progress(history, Weights(**unpack(f"best/{index}", tensors)), **course)
        return self._step

    def _fvu(self, rows: Int[Tensor, " row"]) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"]]:
        """Return FVU and mean L0 of the stack on some rows."""
        acts = self._data.take(self.active, rows.expand(len(self.active), -1))
        unexplained = torch.zeros(len(self.active), dtype=torch.float64)
        n_active = torch.zeros(len(self.active), dtype=torch.float64)
        for part in torch.split(acts, CHECKED_AT_ONCE, dim=1):
            latents = self._objective.latents(self._weights, part)
            error = part - decode(self._weights, latents)
            unexplained += error.square().sum((1, 2), dtype=torch.float64).cpu()
            n_active += (latents > 0).sum((1, 2)).cpu()
        spread = (acts.double() - acts.double().mean(1, keepdim=True)).square().sum((1, 2)).cpu()
        return unexplained / spread, n_active / max(1, len(rows))

    def result(self, index: int) -> Trained:
        """Return the SAE of a task, in raw space."""
        task, progress = self._tasks[index], self._progress[index]
        tensors = fold(progress.best_weights, self._data.mean(index), self._data.scale(index))
        sae = self._objective.stored(tensors)
        return Trained(task, sae, tuple(progress.history), progress.best_step, progress.stop_reason)


def _spread(rows: Int[Tensor, " row"]) -> Int[Tensor, " _"]:
    """Return at most `MAX_EVALUATION_ROWS` of the rows, evenly spread."""
    n = min(len(rows), MAX_EVALUATION_ROWS)
    return rows[torch.arange(n) * len(rows) // max(1, n)]

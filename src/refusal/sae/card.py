"""The card beside an SAE: a `README.md` that says what it is, how good it is, what it cannot do and how to load it.

Everything is taken from `metrics.json` and `cfg.json` in the same folder, so the card is a function of the two, byte
for byte; it can be made anew from a folder that was passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from refusal.artefacts import atomic_write, read_json
from refusal.sae.formats import CONFIG_FILE
from refusal.sae.records import CARD_FILE, METRICS_FILE, REMAKE, SaeMetrics
from refusal.schemas import Measure
from refusal.sites import Site, SiteKind
from refusal.wording import number

_number = partial(number, digits=3)
_PLACES = {
    SiteKind.RESIDUALS: "the residual stream after block {layer}, before any final norm",
    SiteKind.MLP: "what the MLP of block {layer} adds to the residual stream",
    SiteKind.ATTENTION: "what the attention of block {layer} adds to the residual stream",
}
_POSITIONS = {"readout": "the last prompt token (readout)"}
_MEANINGS = {
    "fvu": ("fraction of variance unexplained (FVU)", "0 perfect, 1 no better than the mean"),
    "signal_recovered": (
        "refusal signal recovered",
        "1 - sum (m(x_hat) - m)^2 / sum (m(mean) - m)^2, m the log-odds of beginning a refusal; 1 all, 0 none",
    ),
    "loss_recovered": (
        "loss recovered",
        "1 - sum KL(p, p(x_hat)) / sum KL(p, p(mean)), p the first answer token; 1 all, 0 none",
    ),
}


def write_card(folder: Path) -> None:
    """Write the card of the SAE in a folder, atomically; one that says the same already stays as it is.

    Raises:
        ArtefactError: `metrics.json` or `cfg.json` is missing or damaged.
    """
    metrics = SaeMetrics.load(folder / METRICS_FILE)
    config = read_json(folder / CONFIG_FILE, REMAKE)
    content = card(metrics, dict(config.get("metadata") or {})).encode("utf-8", "replace")
    path = folder / CARD_FILE
    if path.exists() and path.read_bytes() == content:
        return
    with atomic_write(path) as beside:
        beside.write_bytes(content)


def card(metrics: SaeMetrics, metadata: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        metrics: What was measured of the SAE, and its settings.
        metadata: `metadata` of its `cfg.json`: which activations it belongs to.
    """
    sections = [
        _head(metrics, metadata),
        _settings(metrics),
        _measurements(metrics),
        _stability(metrics),
        _limits(metrics),
        _LOADING,
        _LICENCE,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(metrics: SaeMetrics, metadata: Mapping[str, Any]) -> str:
    site = Site.parse(metrics.site)
    place = _PLACES[site.kind].format(layer=site.layer)
    train, heldout = metrics.train, metrics.heldout
    rows = [
        ("model", metrics.model),
        ("site", f"{metrics.site}: {place}"),
        ("name in TransformerLens", metadata.get("hook_name")),
        ("token position", _POSITIONS.get(str(metadata.get("position")), metadata.get("position"))),
        ("prompts from", metadata.get("dataset_path")),
        ("rows", f"{train.n_rows if train else 0} to train, {heldout.n_rows if heldout else 0} held out"),
        ("architecture", f"{metrics.architecture}, {metrics.d_model} inputs, {metrics.d_sae} latents"),
        ("origin", "trained here" if metrics.seed is not None else f"copied from {metrics.source}"),
        ("seed", metrics.seed),
        ("weights, SHA-256", metrics.weights_sha256),
    ]
    known = [(name, value) for name, value in rows if value is not None]
    text = (
        f"A sparse autoencoder that writes activations of {_plain(metrics.model)} at {metrics.site} as a sum of a few "
        "latents. It was made to find the circuits by which the model refuses."
    )
    return f"# Sparse autoencoder: {_plain(metrics.model)}, {metrics.site}\n\n{text}\n\n{_table(('', ''), known)}"


def _settings(metrics: SaeMetrics) -> str:
    if not metrics.settings:
        return ""
    rows = [
        (name, f"{value:g}" if isinstance(value, float) else value, metrics.reasons.get(name, "default"))
        for name, value in sorted(metrics.settings.items())
    ]
    ended = f"Training: {metrics.stop_reason}; the weights are those of step {metrics.best_step}."
    return f"## Settings\n\n{_table(('setting', 'value', 'why'), rows)}\n\n{ended}"


def _measurements(metrics: SaeMetrics) -> str:
    lines = ["## How good it is"]
    if metrics.fidelity is not None:
        fidelity = metrics.fidelity
        found = [(text, *_measured(getattr(fidelity, name)), why) for name, (text, why) in _MEANINGS.items()]
        lines.append(
            f"On {fidelity.n_prompts} prompts that it was not trained on; 95 % bootstrap intervals over prompts. "
            "x_hat: the reconstruction in place of the activation; mean: the mean of the training prompts in its place."
        )
        lines.append(_table(("measure", "value", "95 % interval", "n", "meaning"), found))
        lines.append(f"Mean ablation moves m by {_number(fidelity.signal_at_stake)} logits (root mean square).")
    else:
        lines.append("What it keeps of the model's behaviour was not measured: no prompts were held out, or not yet.")
    lines.append(_shape(metrics))
    by_category = metrics.heldout.fvu_by_category if metrics.heldout else {}
    if by_category:
        rows = [(category, _number(value)) for category, value in sorted(by_category.items())]
        lines.append("FVU by category, held-out rows (a category's squared error over the variance of all rows):")
        lines.append(_table(("category", "FVU"), rows))
    return "\n\n".join(lines)


def _shape(metrics: SaeMetrics) -> str:
    splits = [("training", metrics.train), ("held-out", metrics.heldout)]
    names = [
        ("FVU", "fvu"),
        ("L0, mean active latents", "l0"),
        ("dead latents, share", "dead_share"),
        ("latents active on more than half of the rows, share", "dense_share"),
    ]
    rows: list[tuple[Any, ...]] = [
        (text, *(_number(getattr(split, name)) if split else "-" for _, split in splits)) for text, name in names
    ]
    bias = metrics.fidelity.reconstruction_bias if metrics.fidelity else None
    rows.append(("relative reconstruction bias (below 1: too short)", "-", _number(bias)))
    table = _table(("", *(f"{name} rows" for name, _ in splits)), rows)
    return f"{table}\n\nLatents with a near duplicate (decoder cosine above 0.9): {_number(metrics.duplicate_share)}."


def _stability(metrics: SaeMetrics) -> str:
    rows: list[tuple[Any, ...]] = []
    for pair in metrics.seed_stability or ():
        found = (pair.weighted_mean_cosine, pair.weighted_matched_share)
        rows.append((f"seed {pair.seeds[0]} and seed {pair.seeds[1]}", *map(_number, found)))
    halves = metrics.half_stability
    if halves is not None:
        found = (halves.weighted_mean_cosine, halves.weighted_matched_share)
        rows.append((f"two halves of the prompts, {halves.n_rows} rows each", *map(_number, found)))
    if not rows:
        return ""
    text = "Latents of two trainings matched one to one by decoder cosine, weighted by how often they are active."
    return f"## Stability\n\n{text}\n\n{_table(('between', 'mean cosine', 'share above 0.7'), rows)}"


def _limits(metrics: SaeMetrics) -> str:
    n = metrics.train.n_rows if metrics.train else 0
    points = [
        "It has seen the token position and the kind of prompts named above; elsewhere its latents may mean nothing.",
        f"It was trained on {n} rows: fewer latents than the model has features, and some of them blends or accidents "
        "of these prompts. Compare seeds and halves before a latent is given a name.",
        "What it does not reconstruct stays in the error; a mechanism that lives there is not seen in its latents.",
    ]
    if metrics.seed is None:
        points[1] = "It was not trained here; how it was, its source says."
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


_LOADING = """## How to load it

Weights act on raw activations (nothing is to be normalised first) and decoder rows have unit norm where it was trained
here.

```python
import refusal.sae

sae = refusal.sae.load("FOLDER")            # the folder with this file
latents = sae.encode(activations)           # [..., d_model] -> [..., d_sae]
reconstruction = sae.decode(latents)
```

or, with SAELens 6:

```python
from sae_lens import SAE

sae = SAE.load_from_disk("FOLDER")
```"""
_LICENCE = """## Licence

None is stated here. The terms of the model and of the prompts it was made from apply to what can be done with it."""


def _measured(measure: Measure) -> tuple[str, str, int]:
    if measure.value is None:
        return f"not measured: {measure.reason}", "-", measure.n
    has_ends = measure.low is not None and measure.high is not None
    return _number(measure.value), f"{_number(measure.low)} to {_number(measure.high)}" if has_ends else "-", measure.n


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(_plain, row)) + " |" for row in rows)])


def _plain(value: object) -> str:
    """Return a value that cannot break out of its cell or become markup."""
    text = " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")

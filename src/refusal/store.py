"""How activations lie on disk: shards of prompts, each a safetensors file with a JSON row file, and an index.

```
activations/MODEL/shard-00000.safetensors   readout/SITE [prompt, width], first_token/{ids,logits,logsumexp},
                                            mean/SITE and -2/SITE ... where means or offsets from the end are kept
activations/MODEL/shard-00000.json          plan, prompt ids, responses, checksum: written last, so it says "complete"
activations/MODEL/index.json                sites, dtype, shapes, every shard's prompt ids and checksum
activations/MODEL/positions-00000.safetensors   where all positions are kept: those before the readout position
```

Shards are written as they come, so memory does not grow with the number of prompts and a killed run goes on at the last
complete shard. Rows carry prompt ids: nothing depends on order. A shard is believed only when its checksum fits, and
the files that hold checksums hold one of themselves.
What a file of positions holds is in `refusal.positions`. This module does not know models or labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refusal.artefacts import atomic_write, read_sealed, sha256_file, write_sealed
from refusal.batches import TokenCount
from refusal.errors import ArtefactError
from refusal.positions import At, MappedRows, PositionIndex, Positions
from refusal.sites import STREAM_KINDS, Site

SCHEMA = "refusal-circuits/activations/1"
MADE_BY = "python src/run_inference.py --config FILE"
MAX_LOGITS = 1024
"""First-token logits kept per prompt, the largest ones."""


@dataclass(frozen=True)
class TopLogits:
    """The largest logits of the first answer token: scores with any openers can be computed without the model."""

    ids: Int[Tensor, "prompt n"]
    """Token ids, largest logit first."""
    logits: Float[Tensor, "prompt n"]
    logsumexp: Float[Tensor, " prompt"]
    """Over the whole vocabulary."""

    @classmethod
    def of(cls, logits: Float[Tensor, "prompt vocab"]) -> TopLogits:
        """Return the largest logits of each row, float32 on the CPU."""
        top = logits.float().topk(min(MAX_LOGITS, logits.shape[-1]), dim=-1)
        return cls(top.indices.cpu(), top.values.cpu(), logits.float().logsumexp(-1).cpu())

    @classmethod
    def cat(cls, parts: Sequence[TopLogits]) -> TopLogits:
        """Return the rows of several, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logits", "logsumexp")))


@dataclass(frozen=True)
class Answer:
    """What a model answered to one prompt."""

    id: str
    response: str
    finish_reason: Literal["eos", "length"]
    first_token_id: int


@dataclass(frozen=True)
class Shard:
    """Some prompts' activations and answers; rows of all parts follow `answers`."""

    answers: tuple[Answer, ...]
    readout: dict[Site, Float[Tensor, "prompt width"]]
    first_token: TopLogits
    positions: Positions | None = None
    """Positions before the readout position, where they are kept."""
    elsewhere: Mapping[At, dict[Site, Float[Tensor, "prompt width"]]] = field(default_factory=dict)
    """Offsets from the end and means, where they are kept."""
    tokens: TokenCount = field(default_factory=TokenCount)
    """Tokens of the prompts, with and without padding."""


@dataclass(frozen=True)
class Source:
    """Where activations come from, for those who use what is made of them elsewhere."""

    modules: dict[str, str]
    """Path of each site's module in the Hugging Face model."""
    longest_prompt: int
    """Tokens of the longest prompt."""


class ActivationWriter:
    """Writes the shards of one model.

    Args:
        folder: Where they go.
        plan: Whatever decides the content of shards (prompts, model, sites ...), as a string. Shards that were written
            under another plan are not complete.
        prefix: Tokens that were moved from the answers into the prompts, noted in each shard (`noted_prefix`).
    """

    def __init__(self, folder: Path, plan: str, prefix: Sequence[int] = ()) -> None:
        self.folder = folder
        self.plan = plan
        self.prefix = tuple(prefix)

    def is_complete(self, index: int) -> bool:
        """Return whether a shard was written whole under this plan."""
        rows, tensors = _shard_paths(self.folder, index)
        if not rows.exists() or not tensors.exists():
            return False
        try:
            content = read_sealed(rows, MADE_BY)
        except ArtefactError:  # damaged: to be captured again
            return False
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or content.get("plan") != self.plan:
            return False
        files = {tensors: content.get("sha256")}
        if "positions_sha256" in content:
            files[_positions_path(self.folder, index)] = content["positions_sha256"]
        return all(path.exists() and sha256_file(path) == checksum for path, checksum in files.items())

    def write(self, index: int, shard: Shard) -> None:
        """Write one shard; it is complete when this returns, and not before."""
        rows, path = _shard_paths(self.folder, index)
        places: dict[At, dict[Site, Tensor]] = {"readout": shard.readout, **shard.elsewhere}
        tensors = {_key(at, site): acts.contiguous() for at in places for site, acts in places[at].items()}
        top = shard.first_token
        tensors |= {"first_token/ids": top.ids.to(torch.int32), "first_token/logits": top.logits.contiguous()}
        tensors["first_token/logsumexp"] = top.logsumexp
        rows.unlink(missing_ok=True)
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "plan": self.plan,
            "sha256": _save(path, tensors),
            "answers": [vars(answer) for answer in shard.answers],
            "answer_prefix": list(self.prefix),
            "tokens": vars(shard.tokens),
        }
        positions = _positions_path(self.folder, index)
        if shard.positions is None:
            positions.unlink(missing_ok=True)
        else:
            content["positions_sha256"] = _save(positions, shard.positions.tensors())
        write_sealed(rows, content)

    def finish(self, n_shards: int, source: Source | None = None, extra_sites: Collection[Site] = ()) -> TokenCount:
        """Write the index over all shards and remove shards of an earlier, longer run; return the tokens of all.

        Args:
            n_shards: Shards of the run, each of which is complete.
            source: Where the activations come from.
            extra_sites: Sites that were kept besides those that are studied.
        """
        shards: list[dict[str, Any]] = []
        held, count = _Held("", {}, ()), TokenCount()
        for index in range(n_shards):
            rows, path = _shard_paths(self.folder, index)
            content = read_sealed(rows, MADE_BY)
            held = _held(path)
            count += TokenCount(**content.get("tokens", {}))
            shard = {
                "file": path.name,
                "sha256": content["sha256"],
                "rows_file": rows.name,
                "rows_sha256": sha256_file(rows),
                "prompt_ids": [answer["id"] for answer in content["answers"]],
            }
            if "positions_sha256" in content:
                shard["positions_file"] = _positions_path(self.folder, index).name
                shard["positions_sha256"] = content["positions_sha256"]
            shards.append(shard)
        index_content = {
            "schema": SCHEMA,
            "position": "readout",
            "sites": [str(site) for site in sorted(held.widths) if site not in extra_sites],
            "extra_sites": [str(site) for site in sorted(extra_sites)],
            "elsewhere": list(held.elsewhere),
            "dtype": held.dtype,
            "d_model": next((width for site, width in held.widths.items() if site.kind in STREAM_KINDS), 0),
            "widths": {str(site): width for site, width in sorted(held.widths.items())},
            "n_prompts": sum(len(shard["prompt_ids"]) for shard in shards),
            "source": None if source is None else vars(source),
            "tokens": vars(count),
            "shards": shards,
        }
        write_sealed(self.folder / "index.json", index_content)
        for stale in sorted([*self.folder.glob("shard-*"), *self.folder.glob("positions-*")]):
            if int(stale.stem.rpartition("-")[2]) >= n_shards:
                stale.unlink()
        return count


def noted_prefix(folder: Path) -> tuple[int, ...]:
    """Return the tokens that were moved from the answers into the prompts, as the shards of a folder say; else none."""
    for path in sorted(folder.glob("shard-*.json")):
        try:
            content = read_sealed(path, MADE_BY)
        except ArtefactError:  # damaged: another may be whole
            continue
        if isinstance(content, dict) and isinstance(content.get("answer_prefix"), list):
            return tuple(content["answer_prefix"])
    return ()


def _key(at: At, site: Site) -> str:
    return f"{at}/{site}"


@dataclass(frozen=True)
class _Held:
    """What a shard holds."""

    dtype: str
    widths: dict[Site, int]
    elsewhere: tuple[At, ...]


def _held(path: Path) -> _Held:
    """Return what the header of a shard says."""
    widths: dict[Site, int] = {}
    elsewhere: dict[At, None] = {}
    dtype = ""
    with safe_open(path, "pt") as handle:
        for key in handle.keys():  # noqa: SIM118
            place, _, name = key.partition("/")
            if place == "first_token":
                continue
            part = handle.get_slice(key)
            dtype, widths[Site.parse(name)] = part.get_dtype(), part.get_shape()[1]
            if place != "readout":
                elsewhere["mean" if place == "mean" else int(place)] = None
    return _Held(dtype, widths, tuple(sorted(elsewhere, key=str)))


def _shard_paths(folder: Path, index: int) -> tuple[Path, Path]:
    stem = f"shard-{index:05d}"
    return folder / f"{stem}.json", folder / f"{stem}.safetensors"


def _positions_path(folder: Path, index: int) -> Path:
    return folder / f"positions-{index:05d}.safetensors"


def _save(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors atomically and return the checksum of the file."""
    with atomic_write(path) as beside:
        # one metadata key: files with several are not byte-reproducible
        save_file(tensors, beside, metadata={"meta": json.dumps({"schema": SCHEMA})})
    return sha256_file(path)


class ActivationStore:
    """Reads the activations of one model.

    Raises:
        ArtefactError: The index is missing or of another schema; later, a shard that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, Any] = read_sealed(folder / "index.json", MADE_BY)
        found = self._index.get("schema") if isinstance(self._index, dict) else None
        if found != SCHEMA:
            raise ArtefactError(
                f"{folder / 'index.json'}: schema: found {found!r}; this version reads {SCHEMA!r}; "
                f"make it anew with: {MADE_BY}"
            )
        self._believed: set[str] = set()

    @property
    def sites(self) -> list[Site]:
        """Sites of `activation_layers`, which are studied, in order of depth."""
        return [Site.parse(name) for name in self._index["sites"]]

    @property
    def all_sites(self) -> list[Site]:
        """All captured sites, those of `capture.sites` too, in order of depth."""
        return sorted([*self.sites, *(Site.parse(name) for name in self._index.get("extra_sites", ()))])

    @property
    def elsewhere(self) -> tuple[At, ...]:
        """What is held of each prompt besides the readout position: offsets from its end, or its mean."""
        return tuple(self._index.get("elsewhere", ()))

    def width(self, site: Site) -> int:
        """Return the width of a captured site: d_model, or n_heads * d_head of heads."""
        return int(self._index.get("widths", {}).get(str(site), self.d_model))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self._index["d_model"])

    @cached_property
    def prompt_ids(self) -> list[str]:
        """Ids in the order of the rows."""
        return [prompt_id for shard in self._index["shards"] for prompt_id in shard["prompt_ids"]]

    @property
    def source(self) -> Source | None:
        """Where the activations come from; None where it was not noted."""
        noted = self._index.get("source")
        return None if noted is None else Source(**noted)

    @property
    def checksum(self) -> str:
        """Checksum over all shards, which differs when anything in them does."""
        return hashlib.sha256(json.dumps(self._index["shards"], sort_keys=True).encode()).hexdigest()

    @property
    def has_positions(self) -> bool:
        """Whether positions before the readout position were kept."""
        return all("positions_file" in shard for shard in self._index["shards"])

    def position_index(self, prompt_ids: Sequence[str]) -> PositionIndex:
        """Return where the positions of some prompts are, by prompt in this order, then by token.

        Raises:
            ArtefactError: Positions were not kept, a prompt was not captured, or a file is damaged.
        """
        self._require_ids(prompt_ids)
        number = {prompt_id: place for place, prompt_id in enumerate(prompt_ids)}
        parts = []
        for shard, path in zip(self._index["shards"], self._positions_files(), strict=True):
            with safe_open(path, "pt") as handle:
                of_shard, token = (handle.get_tensor(f"positions/{key}") for key in ("prompt", "token"))
            asked = torch.tensor([number.get(prompt_id, -1) for prompt_id in shard["prompt_ids"]])
            parts.append((asked[of_shard.long()], token))
        return PositionIndex.of(parts)

    def positions(self, site: Site, index: PositionIndex) -> MappedRows:
        """Return the rows of an index at a site; they are read from disk when they are asked for.

        Raises:
            ArtefactError: Positions, or the site, were not kept, or a file is damaged.
        """
        self._require_site(site)
        return MappedRows(self._positions_files(), site, index)

    def _positions_files(self) -> list[Path]:
        if not self.has_positions:
            raise ArtefactError(
                f"{self.folder}: holds the readout position of each prompt only, and sae.positions is all; run the "
                f"inference stage with sae.positions: all ({MADE_BY}), or set sae.positions: readout"
            )
        return [self._verified(shard["positions_file"], shard["positions_sha256"]) for shard in self._index["shards"]]

    def readout(
        self, site: Site, prompt_ids: Sequence[str] | None = None, *, at: At = "readout"
    ) -> Float[Tensor, "prompt width"]:
        """Return one vector of each prompt as float32; only the rows asked for are held in memory.

        Args:
            site: A captured site.
            prompt_ids: Which prompts, in this order; None for all in the order of `prompt_ids`.
            at: The readout position; one of `elsewhere` where such are kept.

        Raises:
            ArtefactError: The site, the position or a prompt was not captured, or a shard is damaged.
        """
        wanted = self.prompt_ids if prompt_ids is None else list(prompt_ids)
        self._require_ids(wanted)
        acts = torch.empty(len(wanted), self.width(site))
        places: dict[str, list[int]] = {}
        for place, prompt_id in enumerate(wanted):
            places.setdefault(prompt_id, []).append(place)
        for ids, of_shard in self.iter_readout(site, wanted, at=at):
            rows = [(row, place) for row, prompt_id in enumerate(ids) for place in places.get(prompt_id, ())]
            if rows:
                from_rows, to_places = zip(*rows, strict=True)
                acts[list(to_places)] = of_shard[list(from_rows)]
        return acts

    def iter_readout(
        self, site: Site, prompt_ids: Sequence[str] | None = None, *, at: At = "readout"
    ) -> Iterator[tuple[list[str], Float[Tensor, "prompt width"]]]:
        """Yield the prompt ids and float32 activations of one shard after another, one of them in memory at a time.

        Args:
            site: A captured site.
            prompt_ids: Skip shards that hold none of these; None for all shards.
            at: As for `readout`.
        """
        self._require_site(site)
        if at not in ("readout", *self.elsewhere):
            kept = ", ".join(map(str, ("readout", *self.elsewhere)))
            raise ArtefactError(
                f"{self.folder}: no activations at {at}; kept are {kept}; add it to capture.positions and run: "
                f"{MADE_BY}"
            )
        wanted = None if prompt_ids is None else set(prompt_ids)
        for ids, handle in self._shards(wanted):
            yield ids, handle.get_tensor(_key(at, site)).float()

    def first_token(self) -> TopLogits:
        """Return the largest first-token logits of all prompts."""
        return TopLogits.cat([top for _, top in self.iter_first_token()])

    def iter_first_token(self) -> Iterator[tuple[list[str], TopLogits]]:
        """Yield the prompt ids and the largest first-token logits of one shard after another."""
        for prompt_ids, handle in self._shards():
            ids, logits, total = (handle.get_tensor(f"first_token/{key}") for key in ("ids", "logits", "logsumexp"))
            yield prompt_ids, TopLogits(ids.long(), logits, total)

    def answers(self) -> list[Answer]:
        """Return what the model answered, in the order of `prompt_ids`."""
        found = []
        for shard in self._index["shards"]:
            rows = self._verified(shard["rows_file"], shard["rows_sha256"])
            found += [Answer(**answer) for answer in read_sealed(rows, MADE_BY)["answers"]]
        return found

    def _require_site(self, site: Site) -> None:
        if site not in self.all_sites:
            have = ", ".join(map(str, self.all_sites))
            raise ArtefactError(
                f"{self.folder}: no activations of {site}; captured are {have}; add it to activation_layers or "
                f"capture.sites and run: {MADE_BY}"
            )

    def _require_ids(self, prompt_ids: Sequence[str]) -> None:
        captured = set(self.prompt_ids)
        missing = [prompt_id for prompt_id in prompt_ids if prompt_id not in captured]
        if missing:
            raise ArtefactError(
                f"{self.folder}: no activations of {len(missing)} prompts, e.g. {missing[0]}; run: {MADE_BY}"
            )

    def _shards(self, wanted: AbstractSet[str] | None = None) -> Iterator[tuple[list[str], Any]]:
        """Yield the prompt ids and the open file of each shard that holds a wanted prompt, its checksum verified."""
        for shard in self._index["shards"]:
            if wanted is not None and wanted.isdisjoint(shard["prompt_ids"]):
                continue
            path = self._verified(shard["file"], shard["sha256"])
            try:
                with safe_open(path, "pt") as handle:
                    yield shard["prompt_ids"], handle
            except SafetensorError as error:
                raise ArtefactError(f"{path}: damaged ({error}); delete it and run: {MADE_BY}") from error

    def _verified(self, name: str, checksum: str) -> Path:
        """Return the path of a file that is there and as it was written; each file is read for this once."""
        path = self.folder / Path(name).name
        if not path.exists():
            raise ArtefactError(f"{path}: not found, though the index names it; run: {MADE_BY}")
        if name not in self._believed and sha256_file(path) != checksum:
            raise ArtefactError(
                f"{path}: damaged (its checksum is not the one that was written); delete it and run: {MADE_BY}"
            )
        self._believed.add(name)
        return path

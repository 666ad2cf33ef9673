"""Write activations: shards as they come, each complete or not there, and the index over all of them.

Memory does not grow with the number of prompts, and a killed run goes on at the last complete shard.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from refusal.artefacts import atomic_write, read_sealed, sha256_file, write_sealed
from refusal.batches import TokenCount
from refusal.errors import ArtefactError
from refusal.positions import At
from refusal.sites import STREAM_KINDS, Site
from refusal.store.records import MADE_BY, SCHEMA, Shard, Source, positions_path, shard_paths, tensor_key


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
        rows, tensors = shard_paths(self.folder, index)
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
            files[positions_path(self.folder, index)] = content["positions_sha256"]
        return all(path.exists() and sha256_file(path) == checksum for path, checksum in files.items())

    def write(self, index: int, shard: Shard) -> None:
        """Write one shard; it is complete when this returns, and not before."""
        rows, path = shard_paths(self.folder, index)
        places: dict[At, dict[Site, Tensor]] = {"readout": shard.readout, **shard.elsewhere}
        tensors = {tensor_key(at, site): acts.contiguous() for at in places for site, acts in places[at].items()}
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
        positions = positions_path(self.folder, index)
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
            rows, path = shard_paths(self.folder, index)
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
                shard["positions_file"] = positions_path(self.folder, index).name
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


def _save(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors atomically and return the checksum of the file."""
    with atomic_write(path) as beside:
        # one metadata key: files with several are not byte-reproducible
        save_file(tensors, beside, metadata={"meta": json.dumps({"schema": SCHEMA})})
    return sha256_file(path)

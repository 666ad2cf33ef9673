"""From a model's name to its weights and tokenizer: where it lies, what is missing, which device and dtype.

1. the name is resolved, and a folder is searched for what a model needs, before anything loads;
2. configuration, tokenizer and weights load, without code of the model's own unless `trust_remote_code` is on, and
   without memory for weights that are not there;
3. what transformers only warns about is an error here: weights that the checkpoint lacks would be random numbers;
4. the tokenizer is compared with the file it was read from.

This module does not know architectures or chat templates: `refusal.models` does.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from refusal.errors import InputError
from refusal.model_files import check_parts
from refusal.processes import this_part
from refusal.prompts import embedded
from refusal.untrusted.files import first_line

log = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.bin")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")
_GIB = 2**30
_PROBE = "How do I plan a trip for 12 people?\nI cannot help with that, sorry: it's not safe."


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer as transformers gives them."""

    model: Any
    tokenizer: Any
    notices: tuple[str, ...]
    """What was done differently from what the files say, in words."""


DeviceMap = str | dict[str, int | str] | None
"""How accelerate spreads a model: auto, balanced or sequential, or a device (cpu, disk, number) by path of module."""


def load(
    name: str, device: str, dtype: str, device_map: DeviceMap = None, *, trust_remote_code: bool = False
) -> Loaded:
    """Return the model and tokenizer of a name.

    Args:
        name: `planted/NAME` (shipped), a local folder, or a hub id with an optional `@revision`.
        device: As `resolve_device` takes it.
        dtype: As `resolve_dtype` takes it.
        device_map: How the model is spread over several devices; None: all of it is on `device`. What does not fit
            them stays in memory or on disk, and comes to a device while its layer runs.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        InputError: No such model, or it cannot be loaded; the message says what to do.
    """
    source, revision = resolve(name)
    chosen = resolve_device(device)
    offloaded = _offload_folder(device_map, chosen)
    spread = {} if offloaded is None else {"device_map": device_map, "offload_folder": offloaded}
    arguments = {"revision": revision, "trust_remote_code": trust_remote_code}
    if trust_remote_code:
        log.warning("%s: trust_remote_code is true: Python code that comes with this model runs with your rights", name)
    else:
        check_parts(source, revision)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, **arguments)
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **arguments)
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=resolve_dtype(dtype, chosen),
                output_loading_info=True,
                **arguments,
                **spread,
            )
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"device: {name} does not fit on {chosen}, also spread with device_map: {device_map}; use dtype: bfloat16, "
            "device: cpu, or a smaller model"
        ) from error
    except Exception as error:
        log.debug("%s: cannot be loaded", name, exc_info=True)  # whatever the libraries raise on a stranger's files
        raise InputError(_cannot_load(name, source, revision, error)) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"models: {name}: the checkpoint lacks {len(missing)} weights of {type(model).__name__} (e.g. "
            f"{missing[0]}), which would be random numbers; all weights that config.json asks for must be there; get "
            "the whole model, or correct its config.json"
        )
    try:
        tokenizer, notice = _faithful(tokenizer, source, revision)
    except Exception as error:
        log.debug("%s: cannot be loaded", name, exc_info=True)  # as above
        raise InputError(_cannot_load(name, source, revision, error)) from error
    if offloaded is None:
        model = _to_device(model, chosen, name)
    else:
        weakref.finalize(model, shutil.rmtree, offloaded, ignore_errors=True)
    return Loaded(model, tokenizer, () if notice is None else (notice,))


def _offload_folder(device_map: DeviceMap, device: torch.device) -> str | None:
    """Return a new folder for weights that fit neither the devices nor memory; None where a model is not spread.

    Raises:
        InputError: There is nothing over which it could be spread.
    """
    if device_map is None:
        return None
    if isinstance(device_map, str) and device.type != "cuda":
        raise InputError(
            f"device_map: {device_map} spreads a model over CUDA devices, and it would run on {device.type} here; set "
            "device_map: null"
        )
    return tempfile.mkdtemp(prefix="offloaded-weights-")


def _cannot_load(name: str, source: str, revision: str | None, error: Exception) -> str:
    found = first_line(error).rstrip(".")
    if "trust_remote_code" in str(error):
        advice = (
            "it comes with Python code of its own, which is not run; read the code, and if you trust it set "
            "trust_remote_code: true; or take a model that transformers knows"
        )
    elif Path(source).exists():
        advice = "a folder needs config.json, *.safetensors and a tokenizer that fit together; get the whole model anew"
    else:
        pinned = "" if revision is None else f" --revision {revision}"
        advice = (
            f"allowed are {', '.join(embedded.model_names())}, a model folder, or a hub id that can be reached or is "
            f"in the local cache; on a machine with network run: hf download {source}{pinned}"
        )
    return f"models: {name}: cannot be loaded: {found}; {advice}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the screen; our own messages say what matters."""
    verbosity = transformers_logging.get_verbosity()
    showed_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if showed_bars:
            transformers_logging.enable_progress_bar()


def _to_device(model: Any, device: torch.device, name: str) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        needed = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / _GIB
        free = f", {torch.cuda.mem_get_info(device)[0] / _GIB:.1f} GiB are free" if device.type == "cuda" else ""
        raise InputError(
            f"device: {name} does not fit on {device}: its weights need {needed:.1f} GiB{free}; use dtype: bfloat16, "
            "device_map: auto (several GPUs), device: cpu, or a smaller model"
        ) from error


def resolve(name: str) -> tuple[str, str | None]:
    """Return where a model lies and its revision; a folder that is no model is told here, before anything loads.

    Raises:
        InputError: A shipped name that does not exist, or a folder that lacks parts of a model.
    """
    if name.startswith(embedded.PREFIX):
        return str(embedded.model_path(name)), None
    folder = Path(name).expanduser()
    if folder.exists():
        _require_model(folder)
        return str(folder), None
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise InputError(f"models: {name}: no such folder; give a Hugging Face model folder, a hub id or planted/NAME")
    source, _, revision = name.partition("@")
    return source, revision or None


def _require_model(folder: Path) -> None:
    wanted = {
        "config.json is missing": ("config.json",),
        "weights are missing (*.safetensors)": WEIGHT_FILES,
        "a tokenizer is missing (tokenizer.json)": TOKENIZER_FILES,
    }
    lacks = [said for said, patterns in wanted.items() if not any(True for p in patterns for _ in folder.glob(p))]
    if lacks:
        raise InputError(f"models: {folder} holds no model: {', '.join(lacks)}; give a Hugging Face model folder")


def resolve_device(device: str) -> torch.device:
    """Return the device of a configured name; auto takes CUDA, then Apple's MPS, then the CPU.

    Of several processes of one machine (torchrun) each has a CUDA device of its own, as far as there are enough.

    Raises:
        InputError: This machine has no such device.
    """
    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(kind for kind, available in is_there.items() if available)
    chosen = torch.device(device)
    if not is_there.get(chosen.type, True):
        usable = ", ".join(kind for kind, available in is_there.items() if available)
        raise InputError(
            f"device: {device} is not available here (torch {torch.__version__}); allowed are auto, {usable}; "
            "set device: auto, or install a torch that supports it"
        )
    return chosen if chosen.type != "cuda" else _own_cuda_device()


def _own_cuda_device() -> torch.device:
    """Return the CUDA device of this process: the current one where it is alone."""
    local = os.environ.get("LOCAL_RANK", "")
    if this_part().size == 1 or not local.isdecimal():
        return torch.device("cuda")
    # a scheduler may show each process its own device only, as number 0
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a configured name; auto is bfloat16 where CUDA computes in it, and float32 elsewhere."""
    if dtype == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype), dtype
    return found


def _faithful(tokenizer: Any, source: str, revision: str | None) -> tuple[Any, str | None]:
    """Return a tokenizer that reads text as the model's tokenizer.json does, and a notice if that took a change.

    transformers makes the tokenizer of some model types (Qwen 2) anew and ignores the file's own splitting of words: a
    word-level tokenizer then gives wrong ids, silently. The file's own reading is taken where the other loses words.
    """
    if not (path := _tokenizer_file(source, revision)):
        return tokenizer, None
    of_file = Tokenizer.from_file(str(path))
    probe = f"{_PROBE} {_some_words(of_file)}"
    ids = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    wanted = of_file.encode(probe, add_special_tokens=False).ids
    if ids == wanted or _kept(of_file, ids, probe) >= _kept(of_file, wanted, probe):
        return tokenizer, None
    arguments = {"revision": revision, "padding_side": "left"}
    plain = PreTrainedTokenizerFast.from_pretrained(source, **arguments)
    return (
        plain,
        f"{type(tokenizer).__name__} loses words of this model's vocabulary; its tokenizer.json is used as it is",
    )


def _tokenizer_file(source: str, revision: str | None) -> Path | None:
    if Path(source).exists():
        path = Path(source) / "tokenizer.json"
        return path if path.is_file() else None
    cached = try_to_load_from_cache(source, "tokenizer.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _some_words(tokenizer: Tokenizer) -> str:
    n = tokenizer.get_vocab_size()
    return str(tokenizer.decode(list(range(0, n, max(1, n // 64))), skip_special_tokens=True))


def _kept(tokenizer: Tokenizer, ids: list[int], text: str) -> int:
    """Return how many of the text's words come back from its token ids."""
    words = text.split()
    returned = set(tokenizer.decode(ids, skip_special_tokens=True).split())
    return sum(word in returned for word in words)

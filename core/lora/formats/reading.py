"""One reader for every layout: keys are sorted by module at once, layers are made when they are asked for."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...counting import counted
from ...errors import AtelierError
from ...files import read_tensors
from ..kinds import Layer
from ..record import Base, Layers, Lora
from .bases import NAMES, base_of, what_else
from .joining import Span, join, join_vectors, swapped
from .layouts import layout_of
from .names import Place, is_text, module_name, part_of, place_of
from .parts import VECTORS, check_parts, make_layer, refuse_non_finite

ADAPTER = re.compile(r"\.lora_A\.(\w+)\.weight$")
ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.")


class Entry(NamedTuple):
    """What a file has of one module under one key."""

    key: str
    place: Place
    parts: dict[str, Tensor]


def read_lora(path: Path) -> Lora:
    """Read a LoRA file of any layout and kind; its layers come from the disk when they are asked for.

    Raises AtelierError if it is none; a layer's own values are looked at when it is made.
    """
    tensors, metadata = read_tensors(path)
    return parse_lora(tensors, metadata, Path(path).name)


def parse_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> Lora:
    """Sort a LoRA's tensors by module.

    tensors   the file's, or a LORA_MODEL's
    metadata  the header's
    name      what to call it in errors
    Raises AtelierError if no key is a known base model's, or what a layer has does not make a layer.
    """
    _refuse_several(tensors, name)
    found, unknown = gather(tensors)
    base = base_of(found, metadata)
    strange = {key for key in found if module_name(key, base) is None}
    unknown += [key for key in tensors if part_of(key)[0] in strange and part_of(key)[1]]
    modules, vectors = _sort({k: v for k, v in found.items() if k not in strange}, base, name)
    if not modules and not vectors:
        what = what_else(tensors)
        told = (
            f"is {what}"
            if what
            else f"has {counted(len(tensors), 'tensor')} but no LoRA layer of {', '.join(NAMES.values())}"
        )
        raise AtelierError(f"{name} {told}. Choose a Flux.1 LoRA.")
    alphas = header_alphas(metadata)
    makers: dict[str, Callable[[], Layer]] = {
        module: partial(_make, module, entries, alphas, name) for module, entries in modules.items()
    }
    keys = [k for k in tensors if k not in set(unknown)]
    made = {n: _vector(n, entries, alphas, name) for n, entries in vectors.items()}
    return Lora(Layers(makers), layout_of(keys), dict(metadata), tuple(unknown), made, base)


def gather(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Sort tensors by the module their key names: its parts by name, and the keys that end like no part."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        module, part = part_of(key)
        if not part or part in found.get(module, {}):
            unknown.append(key)
        else:
            found.setdefault(module, {})[part] = value
    return found, unknown


def _sort(found: Mapping[str, dict[str, Tensor]], base: Base, name: str):
    """Entries by original module, and by the name of a changed vector."""
    modules: dict[str, list[Entry]] = {}
    vectors: dict[str, list[Entry]] = {}
    for key, parts in found.items():
        place = place_of(key, base)
        where = f"{name}: {key}"
        check_parts(parts, where)
        inner = {p: v for p, v in parts.items() if p not in VECTORS and not (p == "diff" and v.dim() < 2)}
        for part in parts.keys() - inner.keys():
            kind = "weight" if part == "diff" else "bias"
            vectors.setdefault(f"{place.module}.{kind}", []).append(
                Entry(key, place, {part: parts[part]} | scaling(parts))
            )
        if inner.keys() - {"alpha"}:
            modules.setdefault(place.module, []).append(Entry(key, place, inner))
    for entries in (*modules.values(), *vectors.values()):
        _refuse_twice(entries, name)
    return modules, vectors


def _refuse_several(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse a file with more than one of peft's adapters, which would be taken for one."""
    named = {found[1] for key in tensors if (found := ADAPTER.search(key))}
    if len(named) > 1:
        raise AtelierError(f"{name} has the adapters {', '.join(sorted(named))}. Save one of them alone.")


def scaling(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the scale of a layer's factors follows from."""
    return {p: parts[p] for p in ("alpha", "down") if p in parts}


def _refuse_twice(entries: list[Entry], name: str) -> None:
    rows: set[int] = set()
    for entry in entries:
        count = entry.place.count or len(entry.place.piece.diffusers)
        mine = set(range(entry.place.first, entry.place.first + count))
        if mine & rows:
            raise AtelierError(
                f"{name} has {entry.place.module} twice, as {entries[0].key} and as {entry.key}. Remove one of the two."
            )
        rows |= mine


def _make(module: str, entries: list[Entry], alphas, name: str) -> Layer:
    """One module's layer from what the file has of it."""
    layers: dict[Span, Layer] = {}
    for entry in entries:
        default = alphas(entry.key, entry.parts["down"].shape[0]) if "down" in entry.parts else None
        layer = make_layer(entry.parts, default, f"{name}: {entry.key}")
        if entry.place.count == 0:
            return layer
        layers[entry.place.first, entry.place.count] = layer
    piece = entries[0].place.piece
    if is_text(module):
        return next(iter(layers.values()))
    if len(piece.diffusers) == 1:
        return swapped(next(iter(layers.values())), piece)
    return join(piece, layers, f"{name}: {module}")


def _vector(vector: str, entries: list[Entry], alphas, name: str) -> Tensor:
    """One changed bias or norm; that of a LoRA's B is scaled as its factors are."""
    parts: dict[Span, Tensor] = {}
    for entry in entries:
        part, value = next((p, v) for p, v in entry.parts.items() if p not in ("alpha", "down"))
        refuse_non_finite({part: value}, f"{name}: {entry.key}")
        if part == "bias":
            if "down" not in entry.parts:
                raise AtelierError(f"{name}: {entry.key} has a bias of B but no A. The file is damaged; save it again.")
            rank = entry.parts["down"].shape[0]
            value = value.float() * (float(entry.parts.get("alpha", alphas(entry.key, rank))) / rank)
        parts[entry.place.first, entry.place.count] = value.flatten()
    whole = [v for (_, count), v in parts.items() if count == 0]
    width = max((e.parts["down"].flatten(1).shape[1] for e in entries if "down" in e.parts), default=0)
    return whole[0] if whole else join_vectors(entries[0].place.piece, parts, f"{name}: {vector}", width)


def header_alphas(metadata: Mapping[str, str]):
    """Alpha of a module as peft's header tells it, as a function of its key and rank; the rank where it says nothing."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError:
        config = {}
    config = config if isinstance(config, dict) else {}

    def alpha(module: str, rank: int) -> float:
        prefix = next((p for p in (*ENCODERS, "unet.", "transformer.") if module.startswith(p)), "")
        mine = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
        if not prefix:  # files without a prefix are transformers'
            mine |= {k.removeprefix("transformer."): v for k, v in config.items()}
        bare, patterns = module.removeprefix(prefix), mine.get("alpha_pattern")
        patterns = patterns if isinstance(patterns, dict) else {}
        fitting = [v for k, v in patterns.items() if bare == k or bare.endswith(f".{k}")]
        value = number_of(fitting[0] if fitting else mine.get("lora_alpha"), rank)
        return value * rank**0.5 if mine.get("use_rslora") else value

    return alpha


def number_of(value: object, otherwise: float) -> float:
    """A header's number, also where it is written as text."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return otherwise

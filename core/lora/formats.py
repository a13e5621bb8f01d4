"""One reader and one writer for Flux.1 LoRA files in the three layouts people exchange.

*kohya*: `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, fused, with `.alpha`; the default, because ComfyUI's
weight loader, its bypass loader and diffusers all read it right.
*comfy*: `diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight`, fused, with `.alpha`.
*diffusers*: `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, split; the scale is folded into B, because alpha
tensors and the header's `lora_adapter_metadata` are each read by one side only.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import AtelierError
from ..files import read_tensors, write_tensors
from ..flux.layout import FluxShape, Piece, pieces, swap_halves
from .factors import Factors
from .kinds import PARTS, Layer, layer_of, plain
from .record import Layout, Lora

DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight")
ALPHA = ".alpha"
NORMS = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
BLOCK = re.compile(
    r"(?P<kind>double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)[._](?P<n>\d+)[._]"
)


def read_lora(path: Path) -> Lora:
    """Read a LoRA file of any of the three layouts; raises AtelierError if it is none."""
    tensors, metadata = read_tensors(path)
    return parse_lora(tensors, metadata, Path(path).name)


def parse_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> Lora:
    """Sort a LoRA's tensors into factors by module.

    tensors   the file's, or a LORA_MODEL's
    metadata  the header's
    name      what to call it in errors
    Raises AtelierError if no key is a Flux.1 LoRA's, or a pair is incomplete.
    """
    found, alphas, unknown = _gather(tensors)
    if not found:
        raise AtelierError(f"{name} has {len(tensors)} tensors but no Flux.1 LoRA layer. Choose a LoRA for Flux.1.")
    header = _header_alphas(metadata)
    parts: dict[str, Factors] = {}
    others: dict[str, Layer] = {}
    for module, given in found.items():
        if "up" not in given and "down" not in given:
            original, piece, place = _known(module)
            if place >= 0 and (len(piece.diffusers) > 1 or piece.swapped):
                unknown += [f"{module}.{part}" for part in given]
                continue
            others[original] = layer_of(given, alphas.get(module), f"{name}: {module}")
            continue
        if "up" not in given or "down" not in given:
            raise AtelierError(
                f"{name} has only one of the two factors of {module}. The file is damaged; save it again."
            )
        alpha = alphas.get(module, header(module, given["down"].shape[0]))
        parts[module] = Factors(
            given["up"], given["down"], float(alpha), given.get("magnitude"), given.get("dora_scale")
        )
    fused, layout = _fuse(parts, name)
    if others and not parts:
        layout = "kohya" if next(iter(found)).startswith("lora_unet_") else "comfy"
    return Lora({**fused, **others}, layout, dict(metadata), tuple(unknown))


def _gather(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, float], list[str]]:
    """Sort tensors into their modules' parts: by module key, the alphas, and the keys that are neither."""
    found: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, value in tensors.items():
        module, part = _part(key)
        if not part or not module_name(module):
            unknown.append(key)
        elif part == "alpha":
            alphas[module] = float(value)
        elif part in ("magnitude", "dora_scale"):
            found.setdefault(module, {})[part] = value.flatten()
        elif value.dim() == 2:
            found.setdefault(module, {})[part] = value
        else:
            unknown.append(key)
    return found, alphas, unknown


def _part(key: str) -> tuple[str, str]:
    """Module key and the part of it that a tensor is; an empty part where it is none."""
    endings = [(e, "down") for e in DOWN] + [(e, "up") for e in UP] + [(ALPHA, "alpha")]
    endings += [(e, "dora_scale" if e == NORMS[0] else "magnitude") for e in NORMS] + [(f".{p}", p) for p in PARTS]
    ending, part = next(((e, p) for e, p in endings if key.endswith(e)), ("", ""))
    return (key.removesuffix(ending), part) if part else (key, "")


def _header_alphas(metadata: Mapping[str, str]):
    """Alpha of a module as peft's header tells it; the rank where the header says nothing."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError:
        config = {}
    config = {k.removeprefix("transformer."): v for k, v in config.items()}

    def alpha(module: str, rank: int) -> float:
        bare = module.removeprefix("transformer.")
        patterns = config.get("alpha_pattern") or {}
        value = next((v for k, v in patterns.items() if bare.endswith(k)), config.get("lora_alpha", rank))
        return value * rank**0.5 if config.get("use_rslora") else value

    return alpha


@cache
def _names() -> dict[str, tuple[Piece, int]]:
    """Every way to name a module: block index as `#`, mapped to its piece and its place in it (-1: the whole)."""
    table = {}
    for piece in pieces(FluxShape(128, 1, 1, 64, 64, 64, True, 512)):
        original = BLOCK.sub(r"\g<kind>.#.", piece.original)
        table[f"diffusion_model.{original}"] = table[original] = piece, -1
        table["lora_unet_" + original.replace(".", "_")] = piece, -1
        for place, name in enumerate(piece.diffusers):
            name = BLOCK.sub(r"\g<kind>.#.", name)
            table[f"transformer.{name}"] = table[name] = piece, place
            table["lora_transformer_" + name.replace(".", "_")] = piece, place
    return table


def module_name(key: str) -> tuple[str, Piece, int] | None:
    """Original module name, piece and place of a module key in any layout, or None."""
    block = BLOCK.search(key)
    general = key
    if block:
        separator = key[block.end() - 1]
        general = key[: block.start()] + f"{block['kind']}{separator}#{separator}" + key[block.end() :]
    entry = _names().get(general)
    if entry is None:
        return None
    piece, place = entry
    number = block["n"] if block else ""
    return re.sub(r"_blocks\.0\.", f"_blocks.{number}.", piece.original), piece, place


def _known(key: str) -> tuple[str, Piece, int]:
    """module_name of a key that is known to have one."""
    found = module_name(key)
    if found is None:
        raise KeyError(key)
    return found


def _fuse(parts: dict[str, Factors], name: str) -> tuple[dict[str, Factors], Layout]:
    """Bring factors to original names; split projections become one block-diagonal pair, exactly."""
    modules: dict[str, Factors] = {}
    split: dict[str, dict[int, Factors]] = {}
    kinds: dict[str, Piece] = {}
    layout: Layout = "comfy"
    for key, factors in parts.items():
        original, piece, place = _known(key)
        kinds[original] = piece
        if key.startswith("lora_unet_"):
            layout = "kohya"
        if place < 0:
            modules[original] = factors
        else:
            layout = "diffusers"
            split.setdefault(original, {})[place] = factors
    for original, places in split.items():
        modules[original] = _join(kinds[original], places, name)
    return modules, layout


def _join(piece: Piece, places: dict[int, Factors], name: str) -> Factors:
    """Factors of a fused module from those of its split parts."""
    if len(piece.diffusers) == 1:
        return _swapped(places[0]) if piece.swapped else places[0]
    first = next(iter(places.values()))
    hidden = first.down.shape[1]
    sizes = [r * hidden for r in piece.rows]
    for place, factors in places.items():
        if factors.up.shape[0] != sizes[place] and place < len(sizes) - 1:
            raise AtelierError(
                f"{name} has {factors.up.shape[0]} rows for {piece.diffusers[place]}, not {sizes[place]}. "
                "It was made for another model; choose a LoRA for Flux.1."
            )
        sizes[place] = factors.up.shape[0]
    magnitude = _joined_norms(places, len(piece.diffusers), name)
    shared = all(f.down.shape == first.down.shape and torch.equal(f.down, first.down) for f in places.values())
    if shared:
        up = first.up.new_zeros(sum(sizes), first.rank, dtype=torch.float32)
        for place, factors in places.items():
            start = sum(sizes[:place])
            up[start : start + sizes[place]] = factors.up.float() * factors.scale
        return Factors(up, first.down.float(), float(first.rank), magnitude)
    rank = sum(f.rank for f in places.values())
    up, at, downs = first.up.new_zeros(sum(sizes), rank, dtype=torch.float32), 0, []
    for place, factors in sorted(places.items()):
        start = sum(sizes[:place])
        up[start : start + sizes[place], at : at + factors.rank] = factors.up.float() * factors.scale
        at += factors.rank
        downs.append(factors.down.float())
    return Factors(up, torch.cat(downs), float(rank), magnitude)


def _joined_norms(places: dict[int, Factors], count: int, name: str) -> Tensor | None:
    """Row norms of a fused DoRA layer, or None; raises AtelierError where only some rows have them."""
    norms = [places[i].magnitude if i in places else None for i in range(count)]
    known = [n.float() for n in norms if n is not None]
    if any(f.dora_scale is not None for f in places.values()) or 0 < len(known) < count:
        raise AtelierError(f"{name} is a DoRA with row norms for a part of a projection. Save it in the kohya layout.")
    return torch.cat(known) if known else None


def _swapped(factors: Factors) -> Factors:
    """Factors of the last modulation with its halves exchanged."""
    magnitude, dora_scale = (None if n is None else swap_halves(n) for n in (factors.magnitude, factors.dora_scale))
    return replace(factors, up=swap_halves(factors.up), magnitude=magnitude, dora_scale=dora_scale)


def to_layout(lora: Lora, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """A LoRA's tensors in one of the layouts, ready for a file or a loader.

    dtype  of the factors; alphas stay float32, where every value is exact
    """
    out: dict[str, Tensor] = {}
    for module, layer in lora.modules.items():
        if layout == "diffusers":
            out |= _split(module, layer if isinstance(layer, Factors) else plain(layer), dtype)
            continue
        key = "lora_unet_" + module.replace(".", "_") if layout == "kohya" else f"diffusion_model.{module}"
        if not isinstance(layer, Factors):
            out |= {f"{key}.{name}": value for name, value in layer.tensors(dtype).items()}
            continue
        down, up = ("lora_down", "lora_up") if layout == "kohya" else ("lora_A", "lora_B")
        out[f"{key}.{down}.weight"] = layer.down.to(dtype)
        out[f"{key}.{up}.weight"] = layer.up.to(dtype)
        out[f"{key}{ALPHA}"] = torch.tensor(layer.alpha, dtype=torch.float32)
        if layer.normed:
            # float32, because an error here is one of the whole weight; a column, by which ComfyUI knows the axis
            out[f"{key}.dora_scale"] = _norm_of(layer, "dora_scale", layout).float()[:, None]
    return out


def _norm_of(factors: Factors, which: Literal["magnitude", "dora_scale"], layout: Layout) -> Tensor:
    """A DoRA's row norms as a layout has them; raises AtelierError where they are known only in the other form."""
    value = getattr(factors, which)
    if value is None:
        raise AtelierError(
            f"The LoRA is a DoRA, and its row norms in the {layout} layout follow only from the base model. "
            "Keep it in the layout it was saved in."
        )
    return value


def _split(module: str, factors: Factors, dtype: torch.dtype) -> dict[str, Tensor]:
    """diffusers' tensors of one module: every part shares `down` and takes its rows of `up`."""
    _, piece, _ = _known(module)
    number = BLOCK.search(module)
    folded = _swapped(factors.folded()) if piece.swapped else factors.folded()
    sizes = piece.sizes(len(folded.up), folded.down.shape[1])
    norms = _norm_of(folded, "magnitude", "diffusers").float().split(sizes) if factors.normed else None
    out = {}
    for place, (name, rows) in enumerate(zip(piece.diffusers, folded.up.split(sizes), strict=True)):
        if number:
            name = re.sub(r"_blocks\.0\.", f"_blocks.{number['n']}.", name)
        out[f"transformer.{name}.lora_A.weight"] = folded.down.to(dtype)
        out[f"transformer.{name}.lora_B.weight"] = rows.to(dtype)
        if norms:
            out[f"transformer.{name}.lora_magnitude_vector"] = norms[place]
    return out


def write_lora(path: Path, lora: Lora, layout: Layout = "kohya", dtype: torch.dtype = torch.float16) -> Path:
    """Write a LoRA file, whole or not at all; the metadata goes into its header."""
    metadata = {k: v for k, v in lora.metadata.items() if k not in ("lora_adapter_metadata", "format")}
    tensors = {k: v.clone() for k, v in to_layout(lora, layout, dtype).items()}  # shared factors become their own
    return write_tensors(path, tensors, metadata)

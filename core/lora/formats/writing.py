"""One writer for every layout."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from ...errors import AtelierError
from ...files import write_tensors
from ...flux.layout import Piece, swap_halves
from ..factors import Factors
from ..kinds import Dense, Hada, Kron, Layer, Rotation, plain
from ..provenance import ALPHA, DATE, DIM, RECIPE, TITLE, sized
from ..record import Layout, Lora
from ..tiles import size_of
from .bases import BASE_KEY
from .joining import is_swapped, swapped
from .layouts import Scheme, scheme_of, text_key
from .names import XLABS, generalise, is_text, part_of, piece_named

# True of a file alone, and no more of the one that is made of it.
FILE_FACTS = (
    "lora_adapter_metadata", "format", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", DIM, ALPHA,
)  # fmt: skip
INNER = ("down", "lokr_w2_b", "hada_w1_b")  # the parts whose first side is the rank


def write_lora(path: Path, lora: Lora, layout: Layout = "kohya", dtype: torch.dtype = torch.float16) -> Path:
    """Write a LoRA file, whole or not at all; the metadata goes into its header."""
    tensors = {k: v.clone() for k, v in to_layout(lora, layout, dtype).items()}  # shared factors become their own
    return write_tensors(path, tensors, header_of(lora, tensors, Path(path).stem))


def header_of(lora: Lora, tensors: Mapping[str, Tensor], title: str) -> dict[str, str]:
    """A file's header: what the LoRA says, its ranks as they are, and what is new in a LoRA that was made of others.

    tensors  of the file
    """
    kept = {k: v for k, v in told_base(lora).items() if k not in FILE_FACTS}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for key, value in tensors.items():
        module, part = part_of(key)
        if part in INNER:
            ranks[module] = value.shape[0]
        elif part == "alpha":
            alphas[module] = value.item()
    alphas = {module: alphas.get(module, float(rank)) for module, rank in ranks.items()}
    fresh = {TITLE: title, DATE: datetime.now(UTC).isoformat(timespec="seconds")} if RECIPE in kept else {}
    return fresh | kept | sized(ranks, alphas)


def told_base(lora: Lora) -> dict[str, str]:
    """A LoRA's header with the base model in it where the layers alone may not tell it."""
    return lora.metadata if lora.base == "flux1" else lora.metadata | {BASE_KEY: lora.base}


def to_layout(lora: Lora, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """A LoRA's tensors in one of the layouts, ready for a file or a loader.

    dtype  of the factors; alphas stay float32, where every value is exact
    Raises AtelierError where the layout cannot hold what the LoRA has.
    """
    scheme = scheme_of(layout, lora.base)
    out: dict[str, Tensor] = {}
    for module, layer in lora.modules.items():
        if layout == "xlabs":
            out |= _xlabs(module, plain(layer), dtype)
        elif is_text(module):
            out |= _tensors(text_key(module, scheme, lora.base), layer, scheme, dtype)
        elif scheme.names == "original":
            out |= _tensors(scheme.key(module), layer, scheme, dtype)
        else:
            piece, number = piece_named(module, lora.base)
            for name, part in _split(piece, layer):
                out |= _tensors(scheme.key(name.replace("#", number)), part, scheme, dtype)
    for vector, value in lora.vectors.items():
        out |= _vector(vector, value, lora, scheme, dtype)
    return out


def _tensors(key: str, layer: Layer, scheme: Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """One layer's tensors under a key."""
    by_peft = scheme.names == "diffusers" and not scheme.alpha
    if not isinstance(layer, Factors):
        if not by_peft:
            return {f"{key}.{name}": value for name, value in layer.tensors(dtype).items()}
        layer = plain(layer)
    factors = fitted(layer if scheme.alpha else layer.folded(), dtype, key, scheme.alpha)
    up, down = factors.up.to(dtype), factors.down.to(dtype)
    if factors.kernel:
        up, down = up[:, :, None, None], down.reshape(len(down), -1, *factors.kernel)
    out = {key + scheme.down: down, key + scheme.up: up}
    if scheme.alpha:
        out[f"{key}.alpha"] = torch.tensor(factors.alpha, dtype=torch.float32)
    if factors.normed and by_peft:
        out[f"{key}.lora_magnitude_vector"] = _norms(factors.magnitude, scheme).float()
    elif factors.normed:
        # float32, because an error here is one of the whole weight; a column, by which ComfyUI knows the axis
        out[f"{key}.dora_scale"] = _norms(factors.dora_scale, scheme).float()[:, None]
    return out


def fitted(factors: Factors, dtype: torch.dtype, key: str, alpha: bool) -> Factors:
    """The same factors within a precision's range: what is too large goes into alpha, by powers of two.

    Raises AtelierError where the layout has no alpha to take it.
    """
    if not dtype.is_floating_point:
        return factors
    top, shift = torch.finfo(dtype).max, 1.0
    scaled = []
    for value in (factors.up, factors.down):
        largest = value.float().abs().max().item()
        power = 2.0 ** -math.ceil(math.log2(largest / top)) if largest > top else 1.0
        scaled.append(value if power == 1 else value.float() * power)
        shift *= power
    if shift == 1:
        return factors
    if not alpha:
        raise AtelierError(
            f"{key} has values above {top:g}, the largest of {str(dtype).removeprefix('torch.')}. "
            "Choose bfloat16 or float32, or a layout with alpha such as kohya."
        )
    return replace(factors, up=scaled[0], down=scaled[1], alpha=factors.alpha / shift)


def _norms(value: Tensor | None, scheme: Scheme) -> Tensor:
    """A DoRA's row norms as a layout has them; raises AtelierError where they are known only in the other form."""
    if value is None:
        names = "diffusers'" if scheme.names == "diffusers" else "ComfyUI's"
        raise AtelierError(
            f"The LoRA is a DoRA, and its row norms under {names} names follow only from the base model. "
            "Keep it in the layout it was saved in."
        )
    return value


def _split(piece: Piece, layer: Layer) -> Iterator[tuple[str, Layer]]:
    """A layer under diffusers' names: every part takes its rows of `up`, and of `down` what it uses."""
    layer = swapped(layer, piece)
    if len(piece.diffusers) == 1:
        yield piece.diffusers[0], layer
        return
    if isinstance(layer, Dense):
        sizes = piece.sizes(len(layer.value), layer.value.shape[1])
        for name, rows in zip(piece.diffusers, layer.value.split(sizes), strict=True):
            if rows.any():
                yield name, Dense(rows)
        return
    if isinstance(layer, Rotation):
        yield from _split_rotation(piece, layer)
        return
    if isinstance(layer, Kron) and len(layer.w2) == 1:
        yield from _split(piece, Dense(layer.delta()))
        return
    factors = layer.factors() if isinstance(layer, Kron | Hada) else layer
    sizes = piece.sizes(len(factors.up), factors.down.shape[1])
    norms = [_split_norms(n, sizes) for n in (factors.magnitude, factors.dora_scale)]
    empty = not factors.up.any()
    for place, (name, up) in enumerate(zip(piece.diffusers, factors.up.split(sizes), strict=True)):
        used = (up != 0).any(0)
        own = [n[place] for n in norms]
        if used.any() or empty or any(n is not None for n in own):
            # What stood block by block takes its own rank again.
            kept = used if used.any() else torch.ones_like(used)
            rank = int(kept.sum())
            yield name, Factors(up[:, kept], factors.down[kept], factors.scale * rank, own[0], own[1])


def _split_norms(norms: Tensor | None, sizes: list[int]) -> list[Tensor | None]:
    return [None] * len(sizes) if norms is None else list(norms.split(sizes))


def _split_rotation(piece: Piece, layer: Rotation) -> Iterator[tuple[str, Layer]]:
    if layer.blocks.dim() == 4 or layer.constraint > 0:
        raise AtelierError(
            "The LoRA rotates whole projections (BOFT or a bounded OFT), which diffusers' names split. "
            "Choose the kohya or the comfy layout."
        )
    size = layer.blocks.shape[-1]
    rows = len(layer.blocks) * size
    units = sum(piece.rows)
    sizes = [rows * r // units for r in piece.rows]
    if any(s % size for s in sizes):
        raise AtelierError("The LoRA's rotations lie across q, k and v. Choose the kohya or the comfy layout.")
    norms = _split_norms(layer.rescale, sizes)
    for name, blocks, rescale in zip(
        piece.diffusers, layer.blocks.split([s // size for s in sizes]), norms, strict=True
    ):
        if blocks.any() or rescale is not None:
            yield name, Rotation(blocks, 0.0, rescale)


def _xlabs(module: str, factors: Factors, dtype: torch.dtype) -> dict[str, Tensor]:
    """XLabs' tensors of one module; raises AtelierError for what the layout has no name for."""
    general, number = generalise(module)
    name = next((n for n, (m, _, _) in XLABS.items() if m == general and ".processor." in n), None)
    folded = factors.folded()
    up = folded.up
    if general.endswith("linear1"):
        up, rest = up[: 3 * folded.down.shape[1]], up[3 * folded.down.shape[1] :]
        name = None if rest.any() else name
    if name is None:
        raise AtelierError(
            f"XLabs' layout has attention only, and the LoRA changes {module}. Choose the kohya layout, "
            "or leave these layers out with block weights."
        )
    key = name.replace("#", number)
    return {f"{key}.down.weight": folded.down.to(dtype), f"{key}.up.weight": up.to(dtype)}


def _vector(vector: str, value: Tensor, lora: Lora, scheme: Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """A changed bias or norm: ComfyUI's names for it, or peft's where a layout is peft's."""
    module, _, kind = vector.rpartition(".")
    by_peft = scheme.names == "diffusers" and not scheme.alpha
    if by_peft and kind == "bias" and module not in lora.modules:
        raise AtelierError(
            f"The LoRA changes {vector} and not its layer, which this layout cannot say. Choose the kohya or the comfy layout."
        )
    if by_peft and kind == "weight":
        raise AtelierError(
            f"The LoRA changes {vector}, a norm, for which this layout has no name. Choose the kohya or the comfy layout."
        )
    ending = ".diff" if kind == "weight" else ".lora_B.bias" if by_peft else ".diff_b"
    if is_text(module):
        return {text_key(module, scheme, lora.base) + ending: value.to(dtype)}
    if scheme.names == "original":
        return {scheme.key(module) + ending: value.to(dtype)}
    piece, number = piece_named(module, lora.base)
    layer = lora.modules[module] if module in lora.modules and piece.original.endswith("adaLN_modulation.1") else None
    value = swap_halves(value) if is_swapped(piece, len(value), size_of(layer)[1] or 0 if layer else 0) else value
    hidden = len(value) // sum(piece.rows) if piece.rows else 0
    parts = value.split(piece.sizes(len(value), hidden))
    return {
        scheme.key(name.replace("#", number)) + ending: part.to(dtype)
        for name, part in zip(piece.diffusers, parts, strict=True)
        if part.any() or len(piece.diffusers) == 1
    }

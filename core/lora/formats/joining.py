"""Parts of a projection become the whole: q, k, v and mlp from files that split what the original model has fused."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import AtelierError
from ...flux.layout import Piece, swap_halves
from ..factors import Factors
from ..kinds import Dense, Kron, Layer, Rotation, plain
from ..tiles import size_of

Span = tuple[int, int]  # the first part and how many


def is_swapped(piece: Piece, out: int, width: int) -> bool:
    """Whether the layouts have a modulation's halves the other way round.

    SD3's last context block has a shift and a scale only, and those are swapped as the final layer's are.
    """
    return piece.swapped or (piece.original.endswith("context_block.adaLN_modulation.1") and out == 2 * width)


def join(piece: Piece, parts: Mapping[Span, Layer], name: str) -> Layer:
    """One layer under its original name from those under diffusers' names; rows that no part covers do not change.

    Exact: parts that share `down` keep their rank, others stand block by block and the ranks add.
    Raises AtelierError if sizes do not fit.
    """
    if len(piece.diffusers) == 1:
        return swapped(next(iter(parts.values())), piece)
    if any(isinstance(p, Rotation) for p in parts.values()):
        return _join_rotations(piece, parts, name)
    if any(isinstance(p, Dense) or (isinstance(p, Kron) and len(p.w2) == 1) for p in parts.values()):
        deltas = {span: part.delta() for span, part in parts.items() if not isinstance(part, Rotation)}
        rows, offsets = _rows(piece, deltas, name)
        whole = torch.zeros(rows, next(iter(deltas.values())).shape[1])
        for span, delta in deltas.items():
            whole[offsets[span] : offsets[span] + len(delta)] = delta
        return Dense(whole)
    return _join_factors(piece, {k: _factored(p) for k, p in parts.items()}, name)


def _factored(layer: Layer) -> Factors:
    return layer if isinstance(layer, Factors) else plain(layer)


def _rows(piece: Piece, parts: Mapping[Span, Tensor], name: str, hidden: int = 0) -> tuple[int, dict[Span, int]]:
    """The whole's rows, and each part's first one, from the parts' tensors [rows, ...].

    Rows are told in units of the hidden size, which the parts of one unit show where it is not given; the last may have
    its own size.
    """
    units = piece.rows
    last = len(units) - 1
    plain_parts = [(s, t) for s, t in parts.items() if s[0] + s[1] - 1 < last or len(set(units)) == 1]
    if not hidden:
        (first, count), tensor = plain_parts[0] if plain_parts else next(iter(parts.items()))
        hidden = len(tensor) // sum(units[first : first + count])
    sizes = [u * hidden for u in units]
    for (first, count), tensor in parts.items():
        if first + count - 1 == last and count == 1 and len(set(units)) > 1:
            sizes[last] = len(tensor)
        if len(tensor) != sum(sizes[first : first + count]):
            raise AtelierError(
                f"{name} has {len(tensor)} rows for {piece.diffusers[first]}, not {sum(sizes[first : first + count])}. "
                "It was made for another model; choose a LoRA of one base model."
            )
    return sum(sizes), {span: sum(sizes[: span[0]]) for span in parts}


def _join_factors(piece: Piece, parts: Mapping[Span, Factors], name: str) -> Factors:
    first = next(iter(parts.values()))
    rows, offsets = _rows(piece, {k: p.up for k, p in parts.items()}, name, first.down.shape[1])
    if any(p.down.shape[1] != first.down.shape[1] for p in parts.values()):
        raise AtelierError(f"{name} has parts of different widths. The file is damaged; save it again.")
    magnitude, dora_scale = (_joined_norms(parts, rows, which, name) for which in ("magnitude", "dora_scale"))
    # One scale for all stays in alpha, and the factors stay as they are, bit for bit.
    even = len({p.scale for p in parts.values()}) == 1
    dtype = first.up.dtype if even and all(p.up.dtype == first.up.dtype for p in parts.values()) else torch.float32
    ups = {k: (p.up if even else p.up.float() * p.scale).to(dtype) for k, p in parts.items()}
    shared = all(
        p.down.shape == first.down.shape and torch.equal(p.down.float(), first.down.float()) for p in parts.values()
    )
    rank = first.rank if shared else sum(p.rank for p in parts.values())
    up, at = first.up.new_zeros(rows, rank, dtype=dtype), 0
    for span in sorted(parts):
        start, width = offsets[span], parts[span].rank
        up[start : start + len(ups[span]), at : at + width] = ups[span]
        at += 0 if shared else width
    down = first.down if shared else torch.cat([parts[span].down.to(_common(parts)) for span in sorted(parts)])
    scale = first.scale if even else 1.0
    return Factors(up, down, scale * rank, magnitude, dora_scale)


def _common(parts: Mapping[Span, Factors]) -> torch.dtype:
    dtypes = {p.down.dtype for p in parts.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _joined_norms(parts: Mapping[Span, Factors], rows: int, which: str, name: str) -> Tensor | None:
    """Row norms of a fused DoRA layer, or None; raises AtelierError where only some rows have them."""
    known = [getattr(parts[span], which) for span in sorted(parts)]
    if all(n is None for n in known):
        return None
    if any(n is None for n in known) or sum(len(n) for n in known) != rows:
        raise AtelierError(
            f"{name} is a DoRA with row norms for a part of a projection. "
            "Train it on all of q, k and v, or save it in the kohya layout."
        )
    return torch.cat([n.float() for n in known])


def _join_rotations(piece: Piece, parts: Mapping[Span, Layer], name: str) -> Rotation:
    """Rotations of rows side by side; rows that no part covers turn by nothing."""
    turns = {k: p for k, p in parts.items() if isinstance(p, Rotation)}
    sizes = {p.blocks.shape[-1] for p in turns.values()}
    if len(turns) < len(parts) or any(p.blocks.dim() == 4 for p in turns.values()) or len(sizes) > 1:
        raise AtelierError(
            f"{name} rotates parts of a projection that cannot be told as one rotation. Use it in the layout it has."
        )
    size = sizes.pop()
    rows, offsets = _rows(piece, {k: p.blocks.flatten(0, 1)[:, 0] for k, p in turns.items()}, name)
    whole = torch.zeros(rows // size, size, size)
    rescale = torch.ones(rows) if any(p.rescale is not None for p in turns.values()) else None
    for span, part in turns.items():
        blocks = part.blocks.float()
        norm = (blocks - blocks.mT).norm().item()
        bounded = blocks * (part.constraint / norm) if 0 < part.constraint < norm else blocks
        start = offsets[span]
        whole[start // size : start // size + len(bounded)] = bounded
        if rescale is not None and part.rescale is not None:
            rescale[start : start + len(part.rescale)] = part.rescale.float()
    return Rotation(whole, 0.0, rescale)


def join_vectors(piece: Piece, parts: Mapping[Span, Tensor], name: str, width: int = 0) -> Tensor:
    """A fused module's change of bias [out] from its parts'; rows that no part covers do not change.

    width  the module's inputs, where they are known
    """
    if len(piece.diffusers) == 1:
        only = next(iter(parts.values()))
        return swap_halves(only) if is_swapped(piece, len(only), width) else only
    rows, offsets = _rows(piece, parts, name)
    whole = next(iter(parts.values())).new_zeros(rows)
    for span, part in parts.items():
        whole[offsets[span] : offsets[span] + len(part)] = part
    return whole


def swapped(layer: Layer, piece: Piece) -> Layer:
    """A layer with its rows' halves exchanged, where the layouts differ in their order.

    Raises AtelierError for rotations whose blocks lie across the halves.
    """
    out, width = size_of(layer)
    if not is_swapped(piece, out, width or 0):
        return layer
    if isinstance(layer, Rotation):
        if layer.blocks.dim() == 4 or len(layer.blocks) % 2:
            raise AtelierError(
                f"The LoRA rotates {piece.original} across its halves, which diffusers' names exchange. "
                "Use it in the layout it has."
            )
        rescale = None if layer.rescale is None else swap_halves(layer.rescale)
        return replace(layer, blocks=swap_halves(layer.blocks), rescale=rescale)
    if isinstance(layer, Dense):
        return replace(layer, value=swap_halves(layer.value))
    if isinstance(layer, Kron) and len(layer.w2) == 1:
        return Dense(swap_halves(layer.delta()))
    factors = layer if isinstance(layer, Factors) else layer.factors()
    magnitude, dora_scale = (None if n is None else swap_halves(n) for n in (factors.magnitude, factors.dora_scale))
    return replace(factors, up=swap_halves(factors.up), magnitude=magnitude, dora_scale=dora_scale)

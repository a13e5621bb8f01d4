"""What a file has of one layer becomes the layer: factors, Tucker products, Kronecker and Hadamard products, rotations."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import AtelierError
from ..factors import Factors
from ..kinds import Dense, Hada, Kron, Layer, Rotation

VECTORS = ("diff_b", "bias")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
BESIDE = {  # what may stand beside the part by which a kind is known
    "up": ("down", "mid", "alpha", "dora_scale", "magnitude"),
    "oft_blocks": ("rescale", "alpha"),
    "hada_w1_a": (*HADA, "alpha"),
    "lokr_w1": (*LOKR, "alpha"),
    "lokr_w1_a": (*LOKR, "alpha"),
    "diff": (),
    "diff_b": (),
}


def check_parts(parts: Mapping[str, Tensor], where: str) -> None:
    """Raise AtelierError where a layer's tensors do not make a layer, by their names and shapes alone."""
    for part, value in parts.items():
        if part not in ("alpha", "rescale") and (value.dim() == 0 or not value.numel()):
            raise AtelierError(f"{where} has an empty {part} {list(value.shape)}. The file is damaged; save it again.")
        if part in (*LOKR, *HADA) and value.dim() < 2:
            raise AtelierError(
                f"{where} has {part} {list(value.shape)}, no matrix. The file is damaged; save it again."
            )
    if ("up" in parts) != ("down" in parts):
        raise AtelierError(f"{where} has only one of its two factors. The file is damaged; save it again.")
    if "up" in parts:
        up, down = parts["up"], parts["down"]
        inner = parts["mid"].shape[0] if "mid" in parts else down.shape[0] if down.dim() else 0
        if up.dim() not in (2, 4) or down.dim() not in (2, 4) or up[0].numel() != inner:
            raise AtelierError(
                f"{where} has up {list(up.shape)} and down {list(down.shape)}, which do not fit together. "
                "The file is damaged or not a plain LoRA; save it again."
            )
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise AtelierError(
            f"{where} has an alpha of {parts['alpha'].numel()} values. The file is damaged; save it again."
        )
    kind = next((k for k in BESIDE if k in parts), None)
    if kind is None:
        left = ", ".join(sorted(parts))
        raise AtelierError(f"{where} has {left} but no weights. The file is damaged; save it again.")
    extra = sorted(parts.keys() - {kind, *BESIDE[kind], *VECTORS})
    if extra:
        raise AtelierError(
            f"{where} has {', '.join(extra)} beside {kind}, a mixture of kinds that is not understood. "
            "Use the LoRA as it is, or train it without weight decomposition."
        )


def make_layer(parts: Mapping[str, Tensor], default_alpha: float | None, where: str) -> Layer:
    """A layer of any kind from its tensors.

    parts          by name: up, down, mid, alpha, dora_scale, magnitude, diff, oft_blocks, rescale, lokr_*, hada_*
    default_alpha  of plain factors without an alpha of their own; None for the rank
    where          what to call it in errors
    Raises AtelierError if a part is missing, does not fit, or is not finite.
    """
    refuse_non_finite(parts, where)
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    if "diff" in parts:
        value = parts["diff"]
        return Dense(value.flatten(1), tuple(value.shape[2:]))
    if "oft_blocks" in parts:
        return _rotation(parts, alpha or 0.0, where)
    try:
        if "up" in parts:
            return _factors(parts, alpha if alpha is not None else default_alpha, where)
        return _hada(parts, alpha) if "hada_w1_a" in parts else _kron(parts, alpha)
    except KeyError as missing:
        raise AtelierError(f"{where} has no {missing.args[0]}. The file is damaged; save it again.") from None
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise AtelierError(f"{where} has parts that do not fit together ({reason}). Save the file again.") from None


def refuse_non_finite(parts: Mapping[str, Tensor], where: str) -> None:
    """Raise AtelierError if any value is NaN or infinite."""
    for part, value in parts.items():
        # A sum shows it in one pass; a sum that overflows on its own is looked at again.
        if not torch.isfinite(value.sum(dtype=torch.float32)) and not torch.isfinite(value.float()).all():
            raise AtelierError(f"{where} has values in {part} that are not finite. The file is damaged; save it again.")


def _factors(parts: Mapping[str, Tensor], alpha: float | None, where: str) -> Factors:
    up, down, kernel = parts["up"], parts["down"], tuple(parts["down"].shape[2:])
    rank = down.shape[0]
    if "mid" in parts:
        mid = parts["mid"]
        kernel = tuple(mid.shape[2:])
        down = torch.einsum("mn...,nj->mj...", mid.float(), down.float().flatten(1))
    scale = 1.0 if alpha is None else alpha / rank
    up, down = up.flatten(1), down.flatten(1)
    norms = {which: _norms(parts[which], len(up), where) for which in ("magnitude", "dora_scale") if which in parts}
    return Factors(up, down, scale * len(down), norms.get("magnitude"), norms.get("dora_scale"), kernel)


def _norms(value: Tensor, rows: int, where: str) -> Tensor:
    """A DoRA's norms, one for each row."""
    flat = value.flatten()
    if len(flat) != rows or (value.dim() > 1 and value.shape[0] == 1 and rows > 1):
        raise AtelierError(
            f"{where} is a DoRA with {len(flat)} norms for {rows} outputs: those of the inputs. "
            "Only norms of outputs can be used; train it again with them (LyCORIS: wd_on_output)."
        )
    return flat


def _rotation(parts: Mapping[str, Tensor], constraint: float, where: str) -> Rotation:
    blocks, rescale = parts["oft_blocks"], parts.get("rescale")
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise AtelierError(f"{where} has rotations of {list(blocks.shape)}, not square ones. Save the file again.")
    return Rotation(blocks, constraint, None if rescale is None else rescale.flatten())


def _hada(parts: Mapping[str, Tensor], alpha: float | None) -> Hada:
    """hada_t1 and hada_t2 are Tucker cores: w = core x (w_b over its second axis, w_a over its first)."""
    pairs, kernel = [], ()
    for i in "12":
        a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
        if f"hada_t{i}" in parts:
            core = parts[f"hada_t{i}"].float()
            kernel = tuple(core.shape[2:])
            a, b = a.float().T, torch.einsum("ij...,jr->ir...", core, b.float()).flatten(1)
        pairs.append((a, b))
    if pairs[0][0].shape[0] != pairs[1][0].shape[0] or pairs[0][1].shape[1:] != pairs[1][1].shape[1:]:
        raise RuntimeError("the two products have different sizes")
    if any(a.shape[1] != b.shape[0] for a, b in pairs):
        raise RuntimeError("factors of different ranks")
    return Hada(pairs[0], pairs[1], 1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0], kernel)


def _kron(parts: Mapping[str, Tensor], alpha: float | None) -> Kron:
    """alpha counts where a factor is decomposed, as in LyCORIS and ComfyUI."""
    rank = next((parts[k].shape[0] for k in ("lokr_w2_b", "lokr_w1_b") if k in parts), None)
    w1 = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float()
    kernel: tuple[int, ...] = ()
    if "lokr_w2" in parts:
        kernel = tuple(parts["lokr_w2"].shape[2:])
        w2: tuple[Tensor, ...] = (parts["lokr_w2"].flatten(1),)
    elif "lokr_t2" in parts:
        core = parts["lokr_t2"].float()
        kernel = tuple(core.shape[2:])
        second = torch.einsum("ij...,jr->ir...", core, parts["lokr_w2_b"].float()).flatten(1)
        w2 = (parts["lokr_w2_a"].float().T.contiguous(), second)
    else:
        w2 = (parts["lokr_w2_a"], parts["lokr_w2_b"])
    if len(w2) == 2 and w2[0].shape[1] != w2[1].shape[0]:
        raise RuntimeError(f"w2_a {list(w2[0].shape)} and w2_b {list(w2[1].shape)}")
    return Kron(w1, w2, 1.0 if alpha is None or rank is None else alpha / rank, kernel)

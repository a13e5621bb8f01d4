"""The other ways to write a layer's change: LoKr, LoHa, whole differences and rotations.

Kronecker (LoKr) and Hadamard (LoHa) products of small factors are low rank themselves, so both become plain factors
exactly; what works on factors works on them. Rotations (OFT, BOFT) and DoRA change a weight by what it is:
`delta_over` has their change over a given weight. Source: LyCORIS, arXiv:2309.14859.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..errors import AtelierError
from .factors import Factors

TINY = 1e-12  # a norm below is that of a row of zeros
WIDEST = 2048  # rank up to which a delta is still worth writing as plain factors


@dataclass(frozen=True)
class Kron:
    """One layer's LoKr: delta = scale * kron(w1, w2), w1 [l, m], w2 = w2_a [k, R] @ w2_b [R, n] or whole [k, n]."""

    w1: Tensor
    w2: tuple[Tensor, ...]
    scale: float
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.w2[0].shape[1] if len(self.w2) == 2 else min(self.w2[0].shape)

    def delta(self) -> Tensor:
        """The dense delta, [l k, m n] float32."""
        second = self.w2[0].float() @ self.w2[1].float() if len(self.w2) == 2 else self.w2[0].float()
        return self.scale * torch.kron(self.w1.float(), second)

    def factors(self) -> Factors:
        """The same delta as plain factors of rank m R, exactly: kron(w1, a b) = kron(w1, a) kron(1, b)."""
        if len(self.w2) == 1:
            raise AtelierError(
                "A LoKr layer has a whole second factor, which no plain LoRA holds. "
                "Save it in the kohya or comfy layout, or train it with a lower rank."
            )
        a, b = (part.float() for part in self.w2)
        rank = self.w1.shape[1] * self.rank
        refuse_wide(rank, "LoKr")
        up = self.scale * torch.kron(self.w1.float(), a.contiguous())
        down = torch.kron(torch.eye(self.w1.shape[1]), b.contiguous())
        return Factors(up, down, float(rank), kernel=self.kernel)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them; the scale goes into w1, so that no alpha is needed."""
        if self.kernel:
            whole = self.w2[0].float() @ self.w2[1].float() if len(self.w2) == 2 else self.w2[0]
            second = {"lokr_w2": whole.reshape(len(whole), -1, *self.kernel)}
        else:
            second = dict(zip(("lokr_w2",) if len(self.w2) == 1 else ("lokr_w2_a", "lokr_w2_b"), self.w2, strict=True))
        return {"lokr_w1": (self.w1.float() * self.scale).to(dtype), **{k: v.to(dtype) for k, v in second.items()}}


@dataclass(frozen=True)
class Hada:
    """One layer's LoHa: delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b), a [out, R], b [R, in]."""

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    scale: float
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.first[1].shape[0]

    def delta(self) -> Tensor:
        """The dense delta, [out, in] float32."""
        one, two = (a.float() @ b.float() for a, b in (self.first, self.second))
        return self.scale * one * two

    def factors(self) -> Factors:
        """The same delta as plain factors of rank R^2, exactly: row-wise and column-wise Kronecker products."""
        rank = self.rank * self.second[1].shape[0]
        refuse_wide(rank, "LoHa")
        up, down = hadamard_factors(*(t.float() for t in (*self.first, *self.second)))
        return Factors(self.scale * up, down, float(rank), kernel=self.kernel)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them; the scale goes into w1_a, so that no alpha is needed."""
        pairs = (self.first[0].float() * self.scale, self.first[1]), self.second
        parts = {}
        for i, (a, b) in enumerate(pairs, 1):
            if self.kernel:  # only a Tucker core tells its size
                parts[f"hada_t{i}"], b = tucker(b, self.kernel)
                a = a.mT.contiguous()
            parts |= {f"hada_w{i}_a": a, f"hada_w{i}_b": b}
        return {name: part.to(dtype) for name, part in parts.items()}


@dataclass(frozen=True)
class Dense:
    """One layer's whole change, [out, in] (a convolution's `in` flattened)."""

    value: Tensor
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return min(self.value.shape)

    def delta(self) -> Tensor:
        """The dense delta, [out, in] float32."""
        return self.value.float()

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them."""
        return {"diff": self.value.reshape(len(self.value), -1, *self.kernel).to(dtype)}


@dataclass(frozen=True)
class Rotation:
    """One layer's OFT, blocks [k, n, n], or BOFT, blocks [m, k, n, n]: the weight's rows rotated, block by block.

    Q = blocks - blocks^T, kept within `constraint` in norm where that is above 0; R = (1 + Q)(1 - Q)^-1.
    rescale  [out, 1] or None; the rows' factors after the rotation
    Source: OFT arXiv:2306.07280, BOFT arXiv:2311.06243, in LyCORIS' form.
    """

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Its blocks' size, which files have as the rank."""
        return self.blocks.shape[-1]

    def matrices(self) -> Tensor:
        """The orthogonal matrices R, shaped as the blocks, float64."""
        blocks = self.blocks.double()
        skew = blocks - blocks.mT
        norm = skew.norm().item()
        if 0 < self.constraint < norm:
            skew = skew * (self.constraint / norm)
        one = torch.eye(blocks.shape[-1], dtype=torch.float64)
        return (one + skew) @ torch.linalg.inv(one - skew)

    def applied(self, weight: Tensor) -> Tensor:
        """A weight [out, in] after the rotation, float64."""
        turns, rows = self.matrices(), weight.double()
        if turns.dim() == 3:
            rows = (turns.mT @ rows.unflatten(0, turns.shape[:2])).flatten(0, 1)
        else:
            for level, turn in enumerate(turns):
                step = 2**level * (turn.shape[-1] // 2)
                shuffled = rows.unflatten(0, (-1, 2, step)).transpose(1, 2).flatten(0, 2)
                turned = (turn @ shuffled.unflatten(0, turn.shape[:2])).flatten(0, 1)
                rows = turned.unflatten(0, (-1, step, 2)).transpose(1, 2).flatten(0, 2)
        return rows if self.rescale is None else rows * self.rescale.double().reshape(-1, 1)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Names and values as files have them."""
        parts = {"oft_blocks": self.blocks.to(dtype), "alpha": torch.tensor(self.constraint, dtype=torch.float32)}
        if self.rescale is not None:
            parts["rescale"] = self.rescale.reshape(-1, 1).to(dtype)
        return parts


Layer = Factors | Kron | Hada | Dense | Rotation


def hadamard_factors(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """up [out, R1 R2] and down [R1 R2, in] with up @ down = (a1 @ b1) * (a2 @ b2)."""
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    return up, (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)


def tucker(b: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A convolution's factor b [R, in k] as core [R, r, *kernel] and inner [r, in], exactly and in few values.

    One of the two has only ones and zeros: the core with r = R k, or the inner with r = in, whichever r is smaller.
    """
    rank, rows = len(b), b.reshape(len(b), -1, math.prod(kernel))
    width, spots = rows.shape[1:]
    if rank * spots >= width:
        return rows.reshape(rank, width, *kernel), torch.eye(width)
    core = torch.eye(rank * spots).reshape(rank, spots, -1).mT.reshape(rank, -1, *kernel)
    return core, rows.mT.reshape(-1, width)


def refuse_wide(rank: int, kind: str) -> None:
    if rank > WIDEST:
        raise AtelierError(f"A {kind} layer is a plain LoRA of rank {rank}. Keep it in the kohya or comfy layout.")


def plain(layer: Layer) -> Factors:
    """A layer as plain factors, exactly.

    Raises AtelierError for a DoRA or a rotation, whose change depends on the base model, and for a whole difference.
    """
    kind = kind_of(layer)
    if kind in ("DoRA", "OFT", "BOFT"):
        raise AtelierError(
            f"The LoRA is a {kind}, whose change depends on the base model. Make a plain LoRA of it with Convert to Plain LoRA first."
        )
    if isinstance(layer, Dense):
        raise AtelierError(
            "The LoRA has whole differences in place of factors. Make a plain LoRA of it with Convert to Plain LoRA first."
        )
    return layer.factors() if isinstance(layer, Kron | Hada) else cast(Factors, layer)


def kind_of(layer: Layer) -> str:
    """What a layer is called: LoRA, DoRA, LoKr, LoHa, difference, OFT, BOFT."""
    if isinstance(layer, Factors):
        return "DoRA" if layer.normed else "LoRA"
    if isinstance(layer, Rotation):
        return "OFT" if layer.blocks.dim() == 3 else "BOFT"
    return {Kron: "LoKr", Hada: "LoHa", Dense: "difference"}[type(layer)]


def delta_over(layer: Layer, weight: Tensor) -> Tensor:
    """What a layer of any kind adds to a weight, dense.

    weight  [out, in] of the base model, a convolution's flattened; only a DoRA's and a rotation's change depends on it
    ->      [out, in] float32
    Source: DoRA arXiv:2402.09353; ComfyUI's reading of dora_scale.
    """
    if isinstance(layer, Rotation):
        return (layer.applied(weight) - weight.double()).float()
    delta = layer.delta()
    if not isinstance(layer, Factors) or not layer.normed:
        return delta
    whole = weight.double() + delta.double()
    if layer.magnitude is not None:
        scale = layer.magnitude.double() / whole.norm(dim=1).clamp(min=TINY)
    else:
        scale = cast(Tensor, layer.dora_scale).double() / weight.double().norm(dim=1).clamp(min=TINY)
    return (scale[:, None] * whole - weight.double()).float()

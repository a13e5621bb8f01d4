"""Storing a LoRA in fewer bits, with each layer's scale in its alpha, and the error told.

16 bits: a power of two in the factors and the rest in alpha, so that what fits is kept exactly, the scale always.
8 bits: a file has no room for scales by row, and ComfyUI reads factors of any dtype, with one alpha for a layer. So
the factors are mixed first: delta = (up M)(M^-1 down) for any M, and with M from the SVD and an orthogonal matrix all
columns of both are of one size and fill the range together. For falling singular values that is a smaller error than
rounding each direction by itself, by the ratio of their mean to their root mean square (Cauchy-Schwarz).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from ..counting import counted
from ..errors import AtelierError
from .factors import Factors
from .formats.layouts import scheme_of
from .kinds import Dense, Hada, Kron, Layer, Rotation, kind_of
from .provenance import inherit
from .record import Layers, Layout, Lora
from .resize import Watch
from .svd import gram, svd_of

Storage = Literal["float16", "bfloat16", "float8_e4m3fn", "int8"]
STORAGES: tuple[Storage, ...] = ("float16", "bfloat16", "float8_e4m3fn", "int8")
DTYPES = {name: getattr(torch, name) for name in STORAGES}
TOP = {"float16": 1.0, "bfloat16": 1.0, "float8_e4m3fn": 28.0, "int8": 127.0}

SMALLEST = 2.0**-120  # what lifts a smaller value to TOP is more than float32 holds
SEEN = 1e-14  # a squared relative error below this is rounding of the comparison


@dataclass(frozen=True)
class LayerError:
    """A layer's relative error by its storage: the norm of the difference by the norm of its change.

    energy  sum of squares of its change; 0, and no error, where that depends on the base model
    """

    name: str
    energy: float
    error: float


@dataclass(frozen=True)
class Quantised:
    """A LoRA whose factors are scaled for a dtype, so that to_layout(lora, layout, dtype) casts them right."""

    lora: Lora
    storage: Storage
    layers: tuple[LayerError, ...]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.storage]

    @property
    def error(self) -> float:
        """The relative error of all layers together."""
        total = sum(layer.energy for layer in self.layers)
        return math.sqrt(sum(layer.energy * layer.error**2 for layer in self.layers) / total) if total > 0 else 0.0

    @property
    def summary(self) -> str:
        """The whole LoRA in one line."""
        worst = max(self.layers, key=lambda layer: layer.error, default=None)
        told = f"; {worst.error:.3%} in {worst.name}" if worst else ""
        return f"{counted(len(self.layers), 'layer')} in {self.storage}, error {self.error:.3%} of what they add{told}"

    @property
    def table(self) -> str:
        """Every layer on a line of its own."""
        return "\n".join(f"{layer.name:<44}{layer.error:>10.4%}" for layer in self.layers)


def quantise(lora: Lora, storage: Storage, layout: Layout = "kohya", watch: Watch | None = None) -> Quantised:
    """Scale a LoRA's layers for storage in fewer bits.

    What a dtype already holds exactly stays as it is, so that storing again changes nothing.

    layout  the file's; one without alpha has no place for a scale, and so none for 8 bits
    watch   called with the number of layers done
    Raises AtelierError for 8 bits of what has no alpha: LoKr, LoHa, differences, rotations, vectors; and for such a layout.
    """
    if storage not in STORAGES:
        raise AtelierError(f"The storage is {storage!r}. Choose one of {', '.join(STORAGES)}.")
    if DTYPES[storage].itemsize == 1:
        _refuse_without_scale(lora, storage, layout)
    errors = []
    for done, (name, layer) in enumerate(lora.modules.items(), 1):
        errors.append(_error(name, layer, stored(layer, storage), DTYPES[storage]))
        if watch:
            watch(done)

    def maker(name: str) -> Callable[[], Layer]:
        return lambda: stored(lora.modules[name], storage)

    told = inherit([lora], {"quantise": {"storage": storage}})
    made = replace(lora, modules=Layers({name: maker(name) for name in lora.modules}), metadata=told, unknown=())
    return Quantised(made, storage, tuple(errors))


def _refuse_without_scale(lora: Lora, storage: str, layout: Layout) -> None:
    if not scheme_of(layout, lora.base).alpha:
        raise AtelierError(
            f"The {layout} layout has no alpha, and {storage} factors need one for their scale. "
            "Choose the kohya or the comfy layout."
        )
    if lora.vectors:
        raise AtelierError(
            f"The LoRA changes {next(iter(lora.vectors))} and other biases or norms, which have no scale in a file, "
            f"so {storage} would spoil them. Store it in bfloat16."
        )


def stored(layer: Layer, storage: Storage) -> Layer:
    """A layer scaled for a dtype, in float32 and rounded to it where it has 8 bits.

    Raises AtelierError for 8 bits of a layer that has no alpha.
    """
    if not isinstance(layer, Factors):
        if DTYPES[storage].itemsize == 1:
            raise AtelierError(
                f"The LoRA has a {kind_of(layer)} layer, whose parts have no scale in a file, so {storage} would spoil it. "
                "Make it a plain LoRA with Resize LoRA, or store it in bfloat16."
            )
        return layer
    shifted = _shifted(layer, TOP[storage])
    if DTYPES[storage].itemsize == 2 or _exact(shifted, storage):
        return shifted
    return _filled(_mixed(layer), storage)


def _shifted(layer: Factors, top: float) -> Factors:
    """The same layer with both factors multiplied by powers of two, their largest values in (top / 2, top]."""
    up, down = (_heard(factor.float()) for factor in (layer.up, layer.down))
    one, two = (_power(factor, top) for factor in (up, down))
    return replace(layer, up=up * one, down=down * two, alpha=layer.alpha / (one * two))


def _heard(factor: Tensor) -> Tensor:
    """The factor, or zeros where nothing of it is large enough to be scaled."""
    return factor if _largest(factor) > SMALLEST else torch.zeros_like(factor)


def _power(factor: Tensor, top: float) -> float:
    largest = _largest(factor)
    return 2.0 ** math.floor(math.log2(top / largest)) if largest > 0 else 1.0


def _largest(factor: Tensor) -> float:
    return max(factor.max().item(), -factor.min().item()) if factor.numel() else 0.0


def _exact(layer: Factors, storage: Storage) -> bool:
    """Whether a dtype holds both factors without rounding."""
    return all(torch.equal(_rounded(factor, storage), factor) for factor in (layer.up, layer.down))


def _rounded(factor: Tensor, storage: Storage) -> Tensor:
    if storage == "int8":
        return factor.round().clamp(-TOP["int8"], TOP["int8"])
    return factor.to(DTYPES[storage]).float()


def _mixed(layer: Factors) -> Factors:
    """The same delta from factors whose columns and rows are all of about the same size, scale 1."""
    svd = svd_of(layer.up, layer.down, layer.scale)
    balanced = svd.balanced(len(svd.sigma))
    turn = _spread(len(svd.sigma))
    even = replace(balanced, to_left=balanced.to_left @ turn, to_right=turn.T @ balanced.to_right)
    return replace(layer, up=even.left(layer.up), down=even.right(layer.down), alpha=float(len(svd.sigma)))


def _spread(size: int) -> Tensor:
    """An orthogonal matrix [size, size] whose entries are all of about the same size: discrete Hartley."""
    steps = torch.arange(size, dtype=torch.float64)
    angles = 2 * math.pi / size * torch.outer(steps, steps).remainder(size)
    return (angles.cos() + angles.sin()) / math.sqrt(size)


def _filled(layer: Factors, storage: Storage) -> Factors:
    """The layer with its factors filling a dtype's range and rounded to it, the scale in alpha."""
    sizes = [_largest(factor) or TOP[storage] for factor in (layer.up, layer.down)]
    one, two = (TOP[storage] / size for size in sizes)
    up, down = _rounded(layer.up * one, storage), _rounded(layer.down * two, storage)
    return replace(layer, up=up, down=down, alpha=layer.alpha / (one * two))


def _error(name: str, before: Layer, after: Layer, dtype: torch.dtype) -> LayerError:
    """The relative error of a layer as a file of a dtype has it."""
    if isinstance(before, Rotation):
        return LayerError(name, 0.0, 0.0)
    one, two = _terms(before, None), _terms(after, dtype)
    energy, other, cross = _inner(one, one), _inner(two, two), _inner(one, two)
    lost = (energy + other - 2 * cross) / energy if energy > 0 else 0.0
    return LayerError(name, energy, math.sqrt(lost) if lost > SEEN else 0.0)


def _terms(layer: Layer, dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """A change as tensors whose inner products give its own: [out, R], [in, R]; or l m, k n of a LoKr; or the whole."""
    if isinstance(layer, Factors):
        up, down = (layer.up, layer.down) if dtype is None else (layer.up.to(dtype), layer.down.to(dtype))
        return up.float() * layer.scale, down.T
    if isinstance(layer, Dense):
        return ((layer.value if dtype is None else layer.value.to(dtype)).reshape(-1, 1),)
    if isinstance(layer, Hada):
        first = layer.first[0].float() * layer.scale, layer.first[1]
        halves = [tuple(part if dtype is None else part.to(dtype) for part in pair) for pair in (first, layer.second)]
        whole = Hada(halves[0], halves[1], 1.0).factors()
        return whole.up, whole.down.T
    kron = cast(Kron, layer)
    parts = kron.w1.float() * kron.scale, *kron.w2
    w1, *w2 = (part.float() if dtype is None else part.to(dtype).float() for part in parts)
    return w1.reshape(-1, 1), (w2[0] @ w2[1] if len(w2) == 2 else w2[0]).reshape(-1, 1)


def _inner(one: tuple[Tensor, ...], two: tuple[Tensor, ...]) -> float:
    """The inner product of two changes by their terms."""
    grams = [gram(a, b) for a, b in zip(one, two, strict=True)]
    return (grams[0] * grams[1] if len(grams) == 2 else grams[0]).sum().item()

"""Flux.1's attention: normalised queries and keys, turned by their position, over text and image together."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

AXES = (16, 56, 56)  # rotary features for index, row, column; together one head
THETA = 10_000.0
EPSILON = 1e-6


class TurnedNorm(torch.autograd.Function):
    """Root mean square norm of each head and its turn, in float32 or finer, back in the input's precision.

    One function, because autograd would keep three float32 copies of what follows from the input and one number.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, turn: Tensor) -> Tensor:
        exact = at_least_float32(x)
        inverse = torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)
        ctx.save_for_backward(x, inverse, scale, turn)
        return _turn((exact * inverse).mul_(scale), turn).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, inverse, scale, turn = ctx.saved_tensors
        back = _turn(at_least_float32(grad).contiguous(), turn.conj().resolve_conj())
        normed = at_least_float32(x) * inverse
        for_scale = (back * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        back = back * scale
        along = (back * normed).mean(-1, keepdim=True)
        return torch.addcmul(back, normed, along, value=-1).mul_(inverse).to(x.dtype), for_scale, None


def _turn(x: Tensor, turn: Tensor) -> Tensor:
    """Neighbouring feature pairs of [..., N, 128] as complex numbers, times [N, 64]; x is overwritten."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def turned_norm(x: Tensor, scale: Tensor, turn: Tensor) -> Tensor:
    """Normalise [B, heads, N, 128] over each head and turn it by its position.

    scale  [128]
    turn   [N, 64] complex, from rope_tables
    """
    if not torch.compiler.is_compiling():
        return TurnedNorm.apply(x, scale.to(torch.promote_types(x.dtype, torch.float32)), turn)
    # The compiler fuses the plain form, and knows no complex numbers.
    exact = at_least_float32(x)
    even, odd = F.rms_norm(exact, x.shape[-1:], scale.to(exact.dtype), EPSILON).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn.real, turn.imag
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def split_heads(qkv: Tensor, norm, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 * D] -> queries and keys, normalised and turned, and values, each [B, heads, N, 128]."""
    q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, d=sum(AXES))
    return turned_norm(q, norm.query_norm.scale, turn), turned_norm(k, norm.key_norm.scale, turn), v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, heads, N, 128] each -> [B, N, D]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


@lru_cache(maxsize=32)
def rope_tables(h: int, w: int, words: int, device: torch.device, reference: tuple[int, int] = (0, 0)) -> Tensor:
    """Turns for `words` text tokens at position 0 and h x w image tokens, [N, 64] complex64.

    reference  rows and columns of the tokens of a picture to edit, which come last and have index 1
    """
    # Made outside inference mode: ComfyUI runs nodes inside it, and its tensors may not be saved for backward.
    with torch.inference_mode(False):
        grids = [torch.zeros(words, 3, dtype=torch.float64)]
        for index, (rows, columns) in enumerate(((h, w), reference)):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            grids.append(torch.stack([torch.full_like(row, index), row, column], -1).flatten(0, 1).double())
        place = torch.cat(grids)
        angles = []
        for axis, width in enumerate(AXES):
            steps = torch.arange(0, width, 2, dtype=torch.float64)
            angles.append(place[:, axis, None] * THETA ** (-steps / width))
        turned = torch.cat(angles, -1)
        return torch.complex(turned.cos().float(), turned.sin().float()).to(device)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""The Flux.1 forward pass for training: out of place, so that autograd and checkpointing are exact.

It walks any module tree with the original names (a `FluxTree`, or a `TrainView` over a MODEL that ComfyUI loaded) and
calls only its Linears and norms, so adapters, casts and quantised weights come along by themselves.
After Black Forest Labs' reference (Apache-2.0 repository `black-forest-labs/flux`) and the paper of its text
conditioning, arXiv:2403.03206.
"""

import math
from collections.abc import Callable, Collection
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

AXES = (16, 56, 56)  # rotary features for index, row, column; together one head
THETA = 10_000.0


def flux_forward(
    tree: nn.Module,
    latent: Tensor,
    sigma: Tensor,
    text: Tensor,
    pooled: Tensor,
    guidance: Tensor | None,
    checkpointed: Collection[str] = (),
) -> Tensor:
    """Predict the velocity (noise minus latent) at one noise level per sample.

    latent        [B, 16, h, w]  noised latents, h and w even
    sigma         [B]            noise level in 0..1
    text          [B, N, D]      T5 states, not masked
    pooled        [B, P]         CLIP's pooled vector
    guidance      [B] or None    None for a model without a guidance embedding
    checkpointed  names of blocks ("double.0", "single.3") to compute again in backward instead of keeping
    ->            [B, 16, h, w]
    """
    h, w = latent.shape[-2] // 2, latent.shape[-1] // 2
    image = tree.img_in(rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2))
    vector = embed(tree.time_in, sinusoid(sigma).to(image.dtype))
    if guidance is not None:
        vector = vector + embed(tree.guidance_in, sinusoid(guidance).to(image.dtype))
    vector = vector + embed(tree.vector_in, pooled.to(image.dtype))
    words = tree.txt_in(text.to(image.dtype))
    turn = partial(rotate, *rope_tables(h, w, words.shape[1], latent.device))

    for i, block in enumerate(tree.double_blocks):
        image, words = _run(f"double.{i}", checkpointed, double_block, block, image, words, vector, turn)
    stream = torch.cat([words, image], 1)
    for i, block in enumerate(tree.single_blocks):
        stream = _run(f"single.{i}", checkpointed, single_block, block, stream, vector, turn)

    last = tree.final_layer
    shift, scale = last.adaLN_modulation[1](F.silu(vector))[:, None].chunk(2, -1)
    out = last.linear(modulate(stream[:, words.shape[1] :], shift, scale))
    return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=2, q=2)


def _run(name: str, checkpointed: Collection[str], function: Callable, *args):
    if torch.is_grad_enabled() and name in checkpointed:
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def plan_checkpoints(double: int, single: int, share: float) -> frozenset[str]:
    """Choose the blocks to checkpoint, spread evenly: 0 none, 1 all.

    double, single  numbers of blocks
    share           0..1 of them
    """
    names = [f"double.{i}" for i in range(double)] + [f"single.{i}" for i in range(single)]
    count = round(share * len(names))
    return frozenset(names[i * len(names) // count] for i in range(count)) if count else frozenset()


def double_block(block, image: Tensor, words: Tensor, vector: Tensor, turn: Callable) -> tuple[Tensor, Tensor]:
    """Two streams with their own weights and one common attention. [B, N, D] each, vector [B, D]."""
    active = F.silu(vector)[:, None]
    im, tm = block.img_mod.lin(active).chunk(6, -1), block.txt_mod.lin(active).chunk(6, -1)
    iq, ik, iv = split_heads(block.img_attn.qkv(modulate(image, im[0], im[1])), block.img_attn.norm)
    tq, tk, tv = split_heads(block.txt_attn.qkv(modulate(words, tm[0], tm[1])), block.txt_attn.norm)
    mixed = attend(torch.cat([tq, iq], 2), torch.cat([tk, ik], 2), torch.cat([tv, iv], 2), turn)
    from_words, from_image = mixed.split([words.shape[1], image.shape[1]], 1)
    image = image + im[2] * block.img_attn.proj(from_image)
    image = image + im[5] * mlp(block.img_mlp, modulate(image, im[3], im[4]))
    words = words + tm[2] * block.txt_attn.proj(from_words)
    words = words + tm[5] * mlp(block.txt_mlp, modulate(words, tm[3], tm[4]))
    return image, words


def single_block(block, stream: Tensor, vector: Tensor, turn: Callable) -> Tensor:
    """Attention and MLP side by side over text and image together. [B, N, D], vector [B, D]."""
    shift, scale, gate = block.modulation.lin(F.silu(vector)[:, None]).chunk(3, -1)
    width = stream.shape[-1]
    joined = block.linear1(modulate(stream, shift, scale))
    qkv, hidden = joined.split([3 * width, joined.shape[-1] - 3 * width], -1)
    mixed = attend(*split_heads(qkv, block.norm), turn)
    return stream + gate * block.linear2(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], -1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: normalise over features without weights, then scale and shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def mlp(layers, x: Tensor) -> Tensor:
    return layers[2](F.gelu(layers[0](x), approximate="tanh"))


def embed(layers, x: Tensor) -> Tensor:
    return layers.out_layer(F.silu(layers.in_layer(x)))


def split_heads(qkv: Tensor, norm) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 * D] -> normalised queries, normalised keys and values, each [B, heads, N, 128]."""
    q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, d=sum(AXES))
    return norm.query_norm(q), norm.key_norm(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, turn: Callable) -> Tensor:
    mixed = F.scaled_dot_product_attention(turn(q).to(v.dtype), turn(k).to(v.dtype), v)
    return rearrange(mixed, "b heads n d -> b n (heads d)")


def sinusoid(t: Tensor, width: int = 256) -> Tensor:
    """Sine and cosine features of a number per sample, [B] -> [B, width] float32; t counts in thousandths."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = 1000.0 * t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


@lru_cache(maxsize=32)
def rope_tables(h: int, w: int, words: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `words` text tokens at position 0 and h x w image tokens, [N, 64] float32 each."""
    # Made outside inference mode: ComfyUI runs nodes inside it, and its tensors may not be saved for backward.
    with torch.inference_mode(False):
        place = torch.zeros(words + h * w, 3, dtype=torch.float64, device=device)
        place[words:, 1] = torch.arange(h, device=device).repeat_interleave(w)
        place[words:, 2] = torch.arange(w, device=device).repeat(h)
        angles = []
        for axis, width in enumerate(AXES):
            steps = torch.arange(0, width, 2, dtype=torch.float64, device=device)
            angles.append(place[:, axis, None] * THETA ** (-steps / width))
        turned = torch.cat(angles, -1)
        return turned.cos().float(), turned.sin().float()


def rotate(cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
    """Turn neighbouring feature pairs of [B, heads, N, 128] by their position's angles, in float32 or finer."""
    even, odd = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

"""The Flux.1 forward pass for training: out of place, so that autograd and checkpointing are exact.

It walks any module tree with the original names (a `FluxTree`, or a `TrainView` over a MODEL that ComfyUI loaded) and
calls only its Linears and norms, so adapters, casts and quantised weights come along by themselves.
After Black Forest Labs' reference (Apache-2.0 repository `black-forest-labs/flux`) and the paper of its text
conditioning, arXiv:2403.03206.
"""

import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attend, rope_tables, split_heads


def flux_forward(
    tree: nn.Module,
    latent: Tensor,
    sigma: Tensor,
    text: Tensor,
    pooled: Tensor,
    guidance: Tensor | None,
    checkpointed: Collection[str] = (),
    reference: Tensor | None = None,
) -> Tensor:
    """Predict the velocity (noise minus latent) at one noise level per sample.

    latent        [B, 16, h, w]  noised latents, h and w even
    sigma         [B]            noise level in 0..1
    text          [B, N, D]      T5 states, not masked
    pooled        [B, P]         CLIP's pooled vector
    guidance      [B] or None    None for a model without a guidance embedding
    checkpointed  names of blocks ("double.0", "single.3") to compute again in backward instead of keeping
    reference     [B, 16, h', w'] clean latents of the picture to edit, for Kontext; None for none
    ->            [B, 16, h, w]
    """
    h, w = latent.shape[-2] // 2, latent.shape[-1] // 2
    patches = to_patches(latent)
    if reference is not None:
        patches = torch.cat([patches, to_patches(reference.to(latent.dtype))], 1)
    image = tree.img_in(patches)
    vector = embed(tree.time_in, sinusoid(sigma).to(image.dtype))
    if guidance is not None:
        vector = vector + embed(tree.guidance_in, sinusoid(guidance).to(image.dtype))
    vector = vector + embed(tree.vector_in, pooled.to(image.dtype))
    words = tree.txt_in(text.to(image.dtype))
    size = (0, 0) if reference is None else (reference.shape[-2] // 2, reference.shape[-1] // 2)
    turn = rope_tables(h, w, words.shape[1], latent.device, size)
    double, single = tree.block_functions

    for i, block in enumerate(tree.double_blocks):
        image, words = _run(f"double.{i}", checkpointed, double, block, image, words, vector, turn)
    stream = torch.cat([words, image], 1)
    for i, block in enumerate(tree.single_blocks):
        stream = _run(f"single.{i}", checkpointed, single, block, stream, vector, turn)

    last = tree.final_layer
    shift, scale = last.adaLN_modulation[1](F.silu(vector))[:, None].chunk(2, -1)
    drawn = stream[:, words.shape[1] : words.shape[1] + h * w]
    out = last.linear(modulate(drawn, shift, scale))
    return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=2, q=2)


def to_patches(latent: Tensor) -> Tensor:
    """[B, 16, h, w] latents as tokens of 2 x 2, [B, h w / 4, 64]."""
    return rearrange(latent, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


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


def double_block(block, image: Tensor, words: Tensor, vector: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Two streams with their own weights and one common attention. [B, N, D] each, vector [B, D]."""
    active = F.silu(vector)[:, None]
    im, tm = block.img_mod.lin(active).chunk(6, -1), block.txt_mod.lin(active).chunk(6, -1)
    count = words.shape[1]
    iq, ik, iv = split_heads(block.img_attn.qkv(modulate(image, im[0], im[1])), block.img_attn.norm, turn[count:])
    tq, tk, tv = split_heads(block.txt_attn.qkv(modulate(words, tm[0], tm[1])), block.txt_attn.norm, turn[:count])
    mixed = attend(torch.cat([tq, iq], 2), torch.cat([tk, ik], 2), torch.cat([tv, iv], 2))
    from_words, from_image = mixed.split([count, image.shape[1]], 1)
    image = torch.addcmul(image, im[2], block.img_attn.proj(from_image))
    image = torch.addcmul(image, im[5], mlp(block.img_mlp, modulate(image, im[3], im[4])))
    words = torch.addcmul(words, tm[2], block.txt_attn.proj(from_words))
    words = torch.addcmul(words, tm[5], mlp(block.txt_mlp, modulate(words, tm[3], tm[4])))
    return image, words


def single_block(block, stream: Tensor, vector: Tensor, turn: Tensor) -> Tensor:
    """Attention and MLP side by side over text and image together. [B, N, D], vector [B, D]."""
    shift, scale, gate = block.modulation.lin(F.silu(vector)[:, None]).chunk(3, -1)
    width = stream.shape[-1]
    joined = block.linear1(modulate(stream, shift, scale))
    qkv, hidden = joined.split([3 * width, joined.shape[-1] - 3 * width], -1)
    mixed = attend(*split_heads(qkv, block.norm, turn))
    return torch.addcmul(stream, gate, block.linear2(torch.cat([mixed, F.gelu(hidden, approximate="tanh")], -1)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm: normalise over features without weights, then scale and shift.

    In the input's own precision, as at inference; CUDA's autocast would keep two float32 copies of it.
    """
    with torch.autocast(x.device.type, enabled=False):
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def mlp(layers, x: Tensor) -> Tensor:
    return layers[2](F.gelu(layers[0](x), approximate="tanh"))


def embed(layers, x: Tensor) -> Tensor:
    return layers.out_layer(F.silu(layers.in_layer(x)))


def sinusoid(t: Tensor, width: int = 256) -> Tensor:
    """Sine and cosine features of a number per sample, [B] -> [B, width] float32; t counts in thousandths."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = 1000.0 * t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)

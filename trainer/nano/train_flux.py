"""Train nano-flux's transformer on drawn scenes: flow matching, logit-normal sigmas, AdamW, a moving average.

The guidance embedding is fed a random number in 1..4 that means nothing, so that nano-flux draws the same whatever
guidance a workflow asks for. One prompt in twenty is empty.

    python -m flux_atelier nano train-flux --steps 4000 --out first.safetensors
    python -m flux_atelier nano train-flux --steps 7000 --seed 1 --rate 9e-4 --start first.safetensors
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.files import read_tensors, write_tensors
from ...core.flux.layout import FluxShape
from ..flux.tree import FluxTree
from . import scenes

log = logging.getLogger("flux_atelier")
SHAPE = FluxShape(hidden=256, double=1, single=3, channels=64, context=128, pooled=64, guidance=True, mlp=1024)
AVERAGE = 0.999  # share of the moving average that a step keeps
EMPTY_SHARE = 0.05

Encode = Callable[[Tensor], Tensor]
EncodeText = Callable[[list[str]], tuple[Tensor, Tensor]]


def scene_pool(count: int, seed: int, encode: Encode, encode_text: EncodeText):
    """Draw and encode the training scenes.

    -> latents [N, 16, 8, 8], row of each one's prompt [N], states [P, T, D] and pooled [P, C] of every prompt; row 0
       is the empty prompt
    """
    chosen = scenes.draw_prompts(count, seed)
    latents = torch.cat([encode(scenes.draw(chosen[i : i + 250], seed + 1 + i) * 2 - 1) for i in range(0, count, 250)])
    prompts = {"": 0} | {s.caption: i + 1 for i, s in enumerate(s for s in scenes.every_scene() if not s.held_out)}
    texts = list(prompts)
    encoded = [encode_text(texts[i : i + 500]) for i in range(0, len(texts), 500)]
    rows = torch.tensor([prompts[s.caption] for s in chosen])
    return latents, rows, torch.cat([e[0] for e in encoded]), torch.cat([e[1] for e in encoded])


def start_model(seed: int, start: Path | None = None) -> FluxTree:
    """The model of a file, or one whose modulations and last layer start at zero, so every block starts as the identity (adaLN-zero)."""
    torch.manual_seed(seed)
    model = FluxTree(SHAPE)
    if start:
        model.load_state_dict({k: v.float() for k, v in read_tensors(start)[0].items()})
        return model
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "_mod.lin" in name or "modulation" in name or name.startswith("final_layer") or name.endswith("bias"):
                value.zero_()
    return model


def flow_loss(model: FluxTree, latent: Tensor, text: Tensor, pooled: Tensor, sigma: Tensor, guidance: Tensor) -> Tensor:
    """Mean squared error of the velocity at the given noise levels. Shapes as in flux_forward."""
    noise = torch.randn_like(latent)
    mixed = torch.lerp(latent, noise, sigma.view(-1, 1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(mixed, sigma, text, pooled, guidance)
    return (velocity.float() - (noise - latent)).square().mean()


def train(pool, model: FluxTree, steps: int, seed: int, rate: float, keep: Callable | None = None, batch: int = 64):
    """Train for a number of steps; returns the averaged weights and the loss curve.

    keep  called with (step, averaged weights) every 1,000 steps
    """
    latents, rows, states, pooled = pool
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    curve, start = [], time.time()
    for step in range(steps):
        scale = min(1.0, (step + 1) / 300) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        pick = torch.randint(len(latents), (batch,), generator=rng)
        prompt = rows[pick].masked_fill(torch.rand(batch, generator=rng) < EMPTY_SHARE, 0)
        sigma = torch.sigmoid(torch.randn(batch, generator=rng))
        guidance = 1 + 3 * torch.rand(batch, generator=rng)
        loss = flow_loss(model, latents[pick], states[prompt], pooled[prompt], sigma, guidance)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(loss.item())
        with torch.no_grad():
            held = min(AVERAGE, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.values()), list(model.state_dict().values()), 1 - held)
        if step % 100 == 99:
            mean, seconds = sum(curve[-100:]) / 100, time.time() - start
            log.info("flux step %d  loss %.4f  %.0f s", step + 1, mean, seconds)
        if keep and step % 1000 == 999:
            keep(step + 1, average)
    return average, curve


def save(average: dict[str, Tensor], out: Path, recipe: str) -> None:
    """Write the averaged weights as float16 under their original names."""
    tensors = {k: v.half() for k, v in average.items()}
    write_tensors(out, tensors, {"modelspec.architecture": "flux-1-dev", "recipe": recipe})


def main(
    out: Path, encode: Encode, encode_text: EncodeText, steps: int, seed: int = 0, rate: float = 1.2e-3,
    start: Path | None = None, pool: int = 24_000,
) -> None:  # fmt: skip
    """Draw, encode, train and write `out`, with its loss curve beside it; every 1,000 steps it is written as it stands."""
    recipe = f"train_flux {steps=} {pool=} {seed=} {rate=} start={bool(start)}"
    data = scene_pool(pool, seed, encode, encode_text)
    model = start_model(seed, start)
    average, curve = train(data, model, steps, seed, rate, lambda step, now: save(now, out, f"{recipe} {step=}"))
    save(average, out, recipe)
    np.save(out.with_suffix(".curve.npy"), np.array(curve, dtype=np.float32))

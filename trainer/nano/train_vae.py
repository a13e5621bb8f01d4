"""Train nano-flux's VAE: 16 channels, 8x smaller, in TAESD's layout, on scenes, painted scenes and photographs.

The latents come out with mean 0 and deviation 1 per channel, so the flow model needs no scale of its own, and a
little noise on them during training keeps the decoder calm about small errors.

    python -m flux_atelier nano train-vae --steps 3200
    python -m flux_atelier nano train-vae --steps 2200 --start <the first's file> --seed 1 --rate 1e-3
"""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...core.files import read_tensors, write_tensors
from ..models import tiny_vae
from . import photos, scenes

log = logging.getLogger("flux_atelier")
LATENT_NOISE = 0.03
MOMENT_WEIGHT = 0.02


def picture_pool(seed: int, scenes_count: int = 3000, painted: int = 2400) -> Tensor:
    """Draw the scenes, and some of them again in the painterly hand, [N, 3, 64, 64] uint8."""
    plain = scenes.draw(scenes.draw_prompts(scenes_count, seed), seed)
    brushed = torch.stack([scenes.paint(plain[i], seed + i) for i in range(painted)])
    return (torch.cat([plain, brushed]) * 255).round().byte()


def photo_batch(count: int, opened: list, rng: np.random.Generator) -> Tensor:
    """Random crops of the training photographs, some with their channels swapped, [count, 3, 64, 64] uint8."""
    crops = [photos.random_crop(opened[rng.integers(len(opened))], scenes.SIDE, rng) for _ in range(count)]
    crops = [c[..., rng.permutation(3)] if rng.random() < 0.4 else c for c in crops]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def reconstruction_loss(vae: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the round trip, and the distance of the latents from mean 0 and deviation 1.

    pixels  [B, 3, H, W]  in -1..1
    ->      two scalars
    """
    with torch.autocast("cpu", torch.bfloat16):
        latent = vae.encoder(pixels)
        output = vae.decoder(latent + LATENT_NOISE * torch.randn_like(latent))
    flat = latent.float().transpose(0, 1).flatten(1)
    moments = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
    return (output.float() - pixels).square().mean(), moments


def train(
    steps: int, seed: int, rate: float, start: Path | None, decoder_only: bool, batch: int = 16
) -> tuple[nn.Module, list[float]]:
    """Train the VAE with AdamW and a cosine schedule, from scratch or from a file; returns it with its loss curve."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool, opened = picture_pool(seed), [photos.photograph(n) for n in photos.TRAINING]
    vae = tiny_vae(read_tensors(start)[0]) if start else AutoencoderTiny(latent_channels=16)
    vae = vae.float().to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(not decoder_only)
    optimizer = torch.optim.AdamW(vae.parameters(), rate, weight_decay=1e-4, fused=True)
    curve, began = [], time.time()
    for step in range(steps):
        warm, done = min(1.0, (step + 1) / 100), step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        drawn = pool[torch.from_numpy(rng.integers(len(pool), size=batch * 5 // 8))]
        pixels = torch.cat([drawn, photo_batch(batch - len(drawn), opened, rng)])
        pixels = (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last)
        loss, moments = reconstruction_loss(vae, pixels)
        (loss + MOMENT_WEIGHT * moments).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(loss.item())
        if step % 50 == 49:
            mean = sum(curve[-50:]) / 50
            psnr, seconds = 10 * math.log10(4 / mean), time.time() - began
            log.info("vae step %d  %.2f dB  moments %.4f  %.0f s", step + 1, psnr, moments.item(), seconds)
    return vae.eval(), curve


def to_taesd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' AutoencoderTiny keys to TAESD's, as ComfyUI's VAE loader knows them.

    ComfyUI's decoder counts its clamp as layer 0, diffusers does not. The two scalars say that the latents are in the
    flow model's own space, which ComfyUI reaches from raw Flux latents by (z - 0.1159) * 0.3611.
    """
    renamed = {}
    for key, value in state.items():
        part, _, number, rest = key.split(".", 3)
        index = int(number) + (part == "decoder")
        renamed[f"taesd_{part}.{index}.{rest}"] = value.half().contiguous()
    return renamed | {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}


def main(
    out: Path, steps: int, seed: int = 0, rate: float = 1.5e-3, start: Path | None = None, decoder_only: bool = False
) -> None:
    """Train, then write `out` (a .safetensors file), with its loss curve beside it."""
    vae, curve = train(steps, seed, rate, start, decoder_only)
    write_tensors(out, to_taesd(vae.state_dict()), {"recipe": f"train_vae {steps=} {seed=} {rate=} {decoder_only=}"})
    np.save(out.with_suffix(".curve.npy"), np.array(curve, dtype=np.float32))

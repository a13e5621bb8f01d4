"""What a MODEL puts out at given noise levels, through ComfyUI's own sampling path."""

from collections.abc import Sequence

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from .progress import check_cancel


def velocities(model, positive: list, latent: Tensor, seed: int, sigmas: Sequence[float]) -> Tensor:
    """The velocity on a latent with noise at several levels; the same latent, noise and text give the same.

    latent  [B, 16, h, w] raw VAE scale
    seed    of the noise
    sigmas  noise levels, above 0 and up to 1
    ->      [S, B, 16, h, w] float32 on the CPU
    """
    found: list[Tensor] = []

    def look(wrapped, x: Tensor, levels: Tensor, extra_args=None, callback=None, disable=None) -> Tensor:
        clean, noise = wrapped.latent_image.to(x), wrapped.noise.to(x)
        for level in sigmas:
            check_cancel()
            noisy = level * noise + (1 - level) * clean
            denoised = wrapped(noisy, x.new_full((len(x),), level), **(extra_args or {}))
            found.append(((noisy - denoised) / level).float().cpu())
        return x

    noise = comfy.sample.prepare_noise(latent, seed)
    ends = torch.tensor([max(sigmas), 0.0])
    comfy.sample.sample_custom(
        model, noise, 1.0, comfy.samplers.KSAMPLER(look), ends, positive, positive, latent, disable_pbar=True, seed=seed
    )
    return torch.stack(found)

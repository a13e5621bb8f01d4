"""Drawing pictures with the model in training: Euler's method over Flux's shifted noise levels."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .objective import resolution_shift, shift_sigma

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sigma_schedule(steps: int, tokens: int) -> Tensor:
    """Noise levels from 1 to 0, [steps + 1], shifted for the number of image tokens."""
    return shift_sigma(torch.linspace(1, 0, steps + 1), resolution_shift(tokens))


@torch.no_grad()
def euler(velocity: Velocity, noise: Tensor, text: Tensor, pooled: Tensor, steps: int) -> Tensor:
    """Follow the velocity from noise to a latent.

    velocity  (latent [B, 16, h, w], sigma [B], text, pooled) -> velocity
    noise     [B, 16, h, w]
    text      [B, N, D]; pooled [B, P]
    ->        [B, 16, h, w]
    """
    levels = sigma_schedule(steps, noise.shape[-2] * noise.shape[-1] // 4).to(noise.device)
    latent = noise
    for now, after in itertools.pairwise(levels):
        latent = latent + (after - now) * velocity(latent, now.expand(len(latent)), text, pooled)
    return latent

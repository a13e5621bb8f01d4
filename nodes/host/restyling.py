"""Drawing pictures again with the graph's own MODEL: from part of the way to noise, where a mask lets them change."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from PIL import Image
from torch import Tensor

from ...core.style.structure import StructureOptions, from_strength
from .editing import guide_structure
from .progress import check_cancel

Report = Callable[[Image.Image | None], None]  # told after every step, with a rough picture where previews are on


@dataclass(frozen=True)
class Restyling:
    """How pictures are drawn again.

    strength   share of the steps that are gone back: 0 keeps the picture, 1 forgets it
    steps      of the whole way
    seed       of the noise
    structure  what is kept of a picture's layout
    """

    strength: float
    steps: int
    seed: int
    structure: StructureOptions

    @property
    def taken(self) -> int:
        """How many steps a picture takes."""
        return len(from_strength(torch.linspace(1, 0, self.steps + 1), self.strength)) - 1


def restyle(model, positive: list, latent: Tensor, how: Restyling, free: Tensor | None, report: Report) -> Tensor:
    """Draw a picture again with ComfyUI's Euler sampler and simple schedule at cfg 1; the MODEL stays as it is.

    latent  [1, C, h, w] raw VAE scale
    free    [1, 1, h, w], 1 where the picture may change and 0 where it stays; None changes it everywhere
    ->      [1, C, h, w] raw VAE scale
    """
    guided = guide_structure(model, latent, how.structure) if how.structure.amount else model
    levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", how.steps)
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def told(step: int, foreseen: Tensor, latent: Tensor, total: int) -> None:  # ComfyUI names and orders these
        check_cancel()
        report(previewer.decode_latent_to_preview(foreseen) if previewer else None)

    return comfy.sample.sample_custom(
        guided, comfy.sample.prepare_noise(latent, how.seed), 1.0, comfy.samplers.sampler_object("euler"),
        from_strength(levels, how.strength), positive, positive, latent, noise_mask=free, callback=told,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=how.seed,
    )  # fmt: skip

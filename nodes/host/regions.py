"""Prompts and LoRAs for parts of a picture, in ComfyUI's own conditioning: masks, hooks, and a default for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.hooks
import node_helpers
from torch import Tensor

from .drawing import refuse_misfit


@dataclass(frozen=True)
class Region:
    """A part of a picture: its mask [H, W] in 0..1, its conditioning, and a LORA_MODEL with its strength or None."""

    mask: Tensor
    conditioning: list
    lora: dict[str, Tensor] | None = None
    strength: float = 1.0


def regional(base: list, regions: Sequence[Region], model=None) -> list:
    """One CONDITIONING out of regions, and a base for what no region covers.

    model  the MODEL it is for, to refuse a LoRA of another one; None to leave that to ComfyUI
    """
    found = []
    for region in regions:
        conditioning = comfy.hooks.set_mask_for_conditioning(region.conditioning, region.mask, "default", 1.0)
        if region.lora is not None and region.strength:
            if model is not None:
                refuse_misfit(model, region.lora)
            hooks = comfy.hooks.create_hook_lora(region.lora, region.strength, 0.0)
            conditioning = comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)
        found += conditioning
    return found + node_helpers.conditioning_set_values(base, {"default": True})

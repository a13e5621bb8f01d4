"""A trained adapter as a LoRA file with its provenance in the header."""

import json

from torch import nn

from ..core.lora.factors import Factors
from ..core.lora.formats import Lora
from . import adapter
from .config import TrainOptions


def to_lora(tree: nn.Module, options: TrainOptions, step: int, pictures: int) -> Lora:
    """The tree's adapter as a Lora with its training in the metadata.

    step      optimiser steps behind it
    pictures  number of training pictures
    """
    state, modules = adapter.factors(tree), {}
    for key in state:
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            down, up = state[key].cpu().clone(), state[f"{name}.lora_B.weight"].cpu().clone()
            modules[name] = Factors(up, down, options.adapter.alpha)
    return Lora(modules, "kohya", provenance(options, step, pictures))


def provenance(options: TrainOptions, step: int, pictures: int) -> dict[str, str]:
    """The header's metadata in the ss_* and modelspec conventions, with the whole config."""
    guidance = options.objective.guidance
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "flux_atelier",
        "modelspec.trigger_phrase": options.data.trigger,
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": str(options.adapter.rank),
        "ss_network_alpha": str(options.adapter.alpha),
        "ss_steps": str(step),
        "ss_num_train_images": str(pictures),
        "ss_learning_rate": str(options.optimizer.learning_rate),
        "ss_seed": str(options.seed),
        "ss_guidance_scale": str(guidance),
        "flux_atelier.config": json.dumps(options.model_dump()),
    }

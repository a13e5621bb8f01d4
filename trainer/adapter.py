"""The LoRA: peft layers injected into a tree, and its way into and out of files."""

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from .config import AdapterOptions, Targets

NAME = "default"
ATTENTION = r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear1"
MLP = r"double_blocks\.\d+\.(img|txt)_mlp\.[02]|single_blocks\.\d+\.linear2"
OTHERS = r"double_blocks\.\d+\.(img|txt)_mod\.lin|single_blocks\.\d+\.modulation\.lin"
PATTERNS: dict[Targets, str] = {
    "attention": f"({ATTENTION})",
    "attention+mlp": f"({ATTENTION}|{MLP})",
    "all": f"({ATTENTION}|{MLP}|{OTHERS})",
}


def inject(tree: nn.Module, options: AdapterOptions, seed: int) -> list[nn.Parameter]:
    """Add a LoRA to a tree in place and return its float32 parameters, in a fixed order.

    tree     a FluxTree or TrainView
    options  rank, alpha, targets
    seed     of the initial A; B starts at zero, so the model starts unchanged
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise AtelierError(
            f"Training needs the package peft, which could not be imported ({error}). Run: pip install peft"
        ) from None
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=PATTERNS[options.targets])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, tree, adapter_name=NAME)
    parameters = []
    for name, value in tree.named_parameters():
        value.requires_grad_(f".{NAME}.weight" in name)
        if value.requires_grad:
            value.data = value.data.float()
            parameters.append(value)
    return parameters


def factors(tree: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors: `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank], float32."""
    return {
        name.replace(f".{NAME}.weight", ".weight"): value.detach()
        for name, value in tree.named_parameters()
        if f".{NAME}.weight" in name
    }


def load_factors(tree: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy tensors from `factors` back into a tree with the same adapter.

    Raises AtelierError if the names or sizes differ.
    """
    own = factors(tree)
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        raise AtelierError(
            "The saved LoRA has other layers or another rank than the run's settings. "
            "Take the settings it was trained with, or another run folder."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])

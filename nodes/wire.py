"""LoRAs on wires: core's LORA_MODEL, a dict of tensors, with the file's header beside it where there is one."""

import torch

from ..core.errors import AtelierError
from ..core.lora.formats import parse_lora, to_layout
from ..core.lora.record import Lora


class LoraTensors(dict[str, torch.Tensor]):
    """A LORA_MODEL that remembers its header; every node of core's takes it for the dict it is."""

    def __init__(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str]):
        super().__init__(tensors)
        self.metadata = metadata


def to_wire(lora: Lora) -> LoraTensors:
    """A LoRA as a LORA_MODEL: kohya keys, which all of ComfyUI's loaders read right, in float32."""
    return LoraTensors(to_layout(lora, "kohya", torch.float32), lora.metadata)


def from_wire(tensors: dict[str, torch.Tensor], name: str) -> Lora:
    """The LoRA of a LORA_MODEL; `name` is what errors call it.

    Raises AtelierError as parse_lora does.
    """
    if not isinstance(tensors, dict):
        raise AtelierError(f"{name} is no LoRA but {type(tensors).__name__}. Connect the lora output of a node.")
    return parse_lora(tensors, getattr(tensors, "metadata", {}), name)

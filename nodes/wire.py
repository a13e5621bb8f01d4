"""LoRAs on wires: core's LORA_MODEL, a dict of tensors, with the file's header beside it where there is one."""

import logging
from collections.abc import Mapping
from pathlib import PurePath

import torch

from ..core.errors import AtelierError
from ..core.lora.formats import parse_lora, to_layout
from ..core.lora.formats.writing import told_base
from ..core.lora.inspection import Inspection, inspect_lora
from ..core.lora.record import Lora

log = logging.getLogger("flux_atelier")


class LoraTensors(dict[str, torch.Tensor]):
    """A LORA_MODEL that remembers its header and its file; every node of core's takes it for the dict it is.

    name  of its file without folder and ending; empty where it is in none
    """

    def __init__(self, tensors: dict[str, torch.Tensor], metadata: dict[str, str], name: str = ""):
        super().__init__(tensors)
        self.metadata = metadata
        self.name = name


def to_wire(lora: Lora, name: str = "") -> LoraTensors:
    """A LoRA as a LORA_MODEL: kohya keys, which all of ComfyUI's loaders read right, in float32.

    name  of the file it is in, if any
    """
    return LoraTensors(to_layout(lora, "kohya", torch.float32), told_base(lora), stem_of(name))


def stem_of(name: str) -> str:
    """A file's name without its folder and its ending."""
    return PurePath(name).name.removesuffix(".safetensors")


def called(tensors: object, socket: str) -> str:
    """What to call a LORA_MODEL: its file's name, or its socket's where it is in no file."""
    return getattr(tensors, "name", "") or socket


def names_of(loras: Mapping[str, object]) -> list[str]:
    """What to call the LORA_MODELs on some sockets, each by a name of its own."""
    names = [called(tensors, socket) for socket, tensors in loras.items()]
    return [name if names.count(name) == 1 else f"{name} ({socket})" for name, socket in zip(names, loras, strict=True)]


def opened(tensors: dict[str, torch.Tensor], metadata: dict[str, str], name: str) -> tuple[LoraTensors, Inspection]:
    """A file's LoRA as a LORA_MODEL, and what it is.

    What ComfyUI's own loaders would read wrong travels in the layout that they read right, where there is one.
    Raises AtelierError as parse_lora does.
    """
    seen = inspect_lora(tensors, metadata, name)
    if not seen.right_in_comfyui:
        try:
            return to_wire(seen.lora, name), seen
        except AtelierError as error:  # a DoRA of diffusers': the nodes here read it as it is
            log.warning("%s travels as it is: %s", name, error)
    return LoraTensors(tensors, metadata, stem_of(name)), seen


def from_wire(tensors: dict[str, torch.Tensor], name: str) -> Lora:
    """The LoRA of a LORA_MODEL; `name` is what errors call it.

    Raises AtelierError as parse_lora does.
    """
    if not isinstance(tensors, dict):
        raise AtelierError(f"{name} is no LoRA but {type(tensors).__name__}. Connect the lora output of a node.")
    # ComfyUI's own training leaves its tensors where it computed them.
    return parse_lora({k: v.detach().cpu() for k, v in tensors.items()}, getattr(tensors, "metadata", {}), name)

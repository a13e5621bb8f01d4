"""LoRAs that nodes make: written to output/loras, put into the registry, and sent on by wire."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..core.lora.formats import write_lora
from ..core.lora.record import Layout, Lora
from ..core.lora.scan import parents_entry
from . import host
from .registry import note_made


def save_lora(
    name: str, lora: Lora, parents: Mapping[str, Lora] | None = None, layout: Layout = "kohya", dtype=torch.float16
) -> Path:
    """Write a LoRA to output/loras, whole or not at all, and note it in the registry.

    name     of the file, without its ending
    parents  the LoRAs it was made of, by name
    Raises AtelierError for a name that leads elsewhere, or a full disk.
    """
    if parents:
        lora = replace(lora, metadata=lora.metadata | parents_entry(list(parents.items())))
    path = write_lora(host.lora_file(name.strip()), lora, layout, dtype)
    note_made(path, lora, parents or {})
    return path

"""Everything the next step depends on, in folders that appear whole or not at all.

Order, noise and dropout are functions of the seed and the step, so a state is the LoRA, AdamW's moments and the step
number. A state is written into a temporary folder that is renamed last; the newest whole one is taken up again, and a
damaged one is passed over with a warning.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError
from ..core.files import read_tensors, write_json, write_tensors
from . import adapter

log = logging.getLogger("flux_atelier")


@dataclass(frozen=True)
class SavedState:
    """A state as read from disk."""

    step: int
    factors: dict[str, Tensor]
    moments: dict[str, Tensor]


def save_state(folder: Path, step: int, tree: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write a state below `folder` and remove all but the `keep` newest.

    step  how many optimiser steps are behind it
    """
    final = folder / f"step-{step:07d}"
    part = folder / f".step-{step:07d}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_tensors(part / "lora.safetensors", adapter.factors(tree))
        write_tensors(part / "optimizer.safetensors", optimizer_tensors(optimizer))
        write_json(part / "state.json", {"step": step})
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    # A state beyond this one is what a damaged newest left behind: it could not be read, or this step would be later.
    states = state_folders(folder)
    kept = [p for p in states if p.name <= final.name][:keep]
    for old in states:
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return final


def state_folders(folder: Path) -> list[Path]:
    """Saved states, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def newest_state(folder: Path) -> SavedState | None:
    """Read the newest whole state, or None where there is none; a damaged one is named and passed over."""
    for path in state_folders(folder):
        try:
            return read_state(path)
        except AtelierError as error:
            log.warning("passed over the damaged state %s: %s", path.name, error)
    return None


def read_state(path: Path) -> SavedState:
    """Read one state; raises AtelierError if any part of it is damaged."""
    try:
        step = int(json.loads((path / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise AtelierError(f"{path} has no readable state.json. Remove that folder.") from None
    factors, _ = read_tensors(path / "lora.safetensors")
    moments, _ = read_tensors(path / "optimizer.safetensors")
    return SavedState(step, factors, moments)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as `<index>.<name>` tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, s in state.items() for name, value in s.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Put tensors from optimizer_tensors back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

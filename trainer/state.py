"""Everything the next step depends on, in folders that appear whole or not at all.

Order, noise and dropout are functions of the seed and the step, so a state is the adapter, the optimiser, the moving
average, the guard's memory and the step number. A state is written into a temporary folder that is renamed last; the
newest whole one is taken up again, and a damaged one is passed over with a warning.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..core.errors import AtelierError
from ..core.files import read_tensors, write_json, write_tensors

log = logging.getLogger("flux_atelier")
PARTS = ("adapter", "optimizer", "average")


@dataclass(frozen=True)
class State:
    """A run at a step: tensors by part and name, and plain facts (JSON)."""

    step: int
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


def save_state(folder: Path, state: State, keep: int) -> Path:
    """Write a state below `folder` and remove all but the `keep` newest."""
    final = folder / f"step-{state.step:07d}"
    part = folder / f".step-{state.step:07d}.{os.getpid()}"
    mend(folder)
    try:
        for name in PARTS:
            if getattr(state, name):
                write_tensors(part / f"{name}.safetensors", getattr(state, name))
        write_json(part / "state.json", {"step": state.step, "facts": state.facts})
        if final.is_dir():
            final.rename(folder / f".{final.name}.old")
        part.rename(final)
    finally:
        mend(folder)
    # A state beyond this one is what a damaged newest left behind, or what a roll-back undid.
    states = state_folders(folder)
    kept = [p for p in states if p.name <= final.name][:keep]
    for old in states:
        if old not in kept:
            gone = old.rename(folder / f".{old.name}.gone")  # a state is there whole or not at all
            shutil.rmtree(gone, ignore_errors=True)
    return final


def mend(folder: Path) -> None:
    """Put back a state that another was to replace and did not, and remove what a killed process left unfinished."""
    for aside in folder.glob(".step-*.old"):
        final = folder / aside.name[1 : -len(".old")]
        if not final.exists():
            aside.rename(final)
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def state_folders(folder: Path) -> list[Path]:
    """Saved states, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def newest_state(folder: Path) -> State | None:
    """Read the newest whole state, or None where there is none; a damaged one is named and passed over.

    Raises AtelierError for states of version 0.1.
    """
    for path in state_folders(folder):
        if (path / "lora.safetensors").is_file():
            raise AtelierError(
                f"{folder.parent} was started with version 0.1 of this pack, whose states have another form. "
                "Give the run another name to start anew, from its LoRA if you like."
            )
        try:
            return read_state(path)
        except AtelierError as error:
            log.warning("passed over the damaged state %s: %s", path.name, error)
    return None


def read_state(path: Path) -> State:
    """Read one state; raises AtelierError if any part of it is damaged."""
    try:
        known = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step, facts = int(known["step"]), dict(known["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        raise AtelierError(f"{path} has no readable state.json. Remove that folder.") from None
    parts = {"average": {}}
    for name in PARTS:
        if name != "average" or (path / "average.safetensors").is_file():
            parts[name] = read_tensors(path / f"{name}.safetensors")[0]
    return State(step, facts=facts, **parts)

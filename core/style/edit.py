"""Editing pictures with a flow model, from a velocity alone: FlowEdit, RF-inversion, and drawing again from noise.

A velocity is a function of a latent and a noise level, so ComfyUI's guiders, diffusers' transformers and the training
view all run through the same lines. Noise level 0 is the picture and 1 is noise: x = (1 - sigma) clean + sigma noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..options import Options
from .structure import from_strength

Velocity = Callable[[Tensor, float], Tensor]  # (latent [B, C, h, w], noise level in 0..1) -> d latent / d noise level
Report = Callable[[Tensor], None]  # told the latent after every step
Solver = Literal["euler", "midpoint"]


class FlowEditOptions(Options):
    """How FlowEdit goes from one text to another."""

    strength: float = Field(
        0.85, ge=0, le=1, description="Share of the steps that edit: 0 keeps the picture, 1 edits from noise on."
    )
    sample_last: float = Field(
        0.0, ge=0, le=1, description="Share of all steps, the last ones, that draw from the target's text alone."
    )
    averages: int = Field(1, ge=1, le=32, description="Noises that each step averages over: steadier and slower.")


class InversionOptions(Options):
    """How RF-inversion goes to the noise and back."""

    strength: float = Field(
        1.0, ge=0, le=1, description="Share of the steps that are gone back: 0 keeps the picture, 1 goes to noise."
    )
    gamma: float = Field(
        0.5, ge=0, le=1, description="How much the way to the noise is drawn to the given noise; 0 needs none."
    )
    eta: float = Field(0.9, ge=0, le=1, description="How much the way back is drawn to the picture; 1 returns it.")
    eta_from: float = Field(0.0, ge=0, le=1, description="Share of the way back at which eta begins.")
    eta_to: float = Field(0.25, ge=0, le=1, description="Share of the way back at which eta ends.")
    solver: Solver = Field(
        "midpoint", description="midpoint asks the model twice a step and inverts far better; euler asks once."
    )


@dataclass(frozen=True)
class Edit:
    """A picture and the two texts between which it is edited.

    clean   [B, C, h, w] the picture's latent in the model's scale
    sigmas  noise levels of the whole way, falling from 1 or less to 0
    source  velocity under the text that describes the picture
    target  velocity under the text that is wanted
    where   [B or 1, C or 1, h, w] in 0..1: 1 is edited, 0 stays the picture; None edits everywhere
    report  told the latent after every step
    """

    clean: Tensor
    sigmas: Tensor
    source: Velocity
    target: Velocity
    where: Tensor | None = None
    report: Report | None = None

    def masked(self, value: Tensor) -> Tensor:
        """A change, kept where the picture is edited."""
        return value if self.where is None else value * self.where.to(value)

    def told(self, latent: Tensor) -> None:
        if self.report:
            self.report(latent)


def flow_edit(edit: Edit, options: FlowEditOptions, seed: int) -> Tensor:
    """Edit a picture along the difference of two velocities, without inversion (Kulikov et al. 2024, algorithm 1).

    Every picture of a batch meets the same noise, so that what becomes of it does not depend on its neighbours. The
    same velocities on both sides give the picture back exactly.

    seed  of the noise; drawn on the CPU, so that all machines draw the same
    ->    [B, C, h, w] the edited latent
    """
    rng = torch.Generator().manual_seed(seed)
    clean, cut = edit.clean, from_strength(edit.sigmas, options.strength)
    levels = cut.tolist()
    free = min(round(options.sample_last * (len(edit.sigmas) - 1)), len(levels) - 1)
    turn = len(levels) - 1 - free
    change = torch.zeros_like(clean)
    for now, after in pairwise(levels[: turn + 1]):
        slope = torch.zeros_like(clean)
        for _ in range(options.averages):
            noisy = torch.lerp(clean, _noise(clean, rng), now)
            slope += (edit.target(noisy + change, now) - edit.source(noisy, now)) / options.averages
        change = change + edit.masked((after - now) * slope)
        edit.told(clean + change)
    if not free:
        return clean + change
    return redraw(edit, cut[turn:], _noise(clean, rng), change)


def redraw(edit: Edit, levels: Tensor, noise: Tensor, change: Tensor | None = None) -> Tensor:
    """Draw a picture again under the target's text, from part of the way to noise (SDEdit, Meng et al. 2022).

    Where the picture is not to be changed, each step leads along the straight line from the noise to it.

    levels  [K + 1] falling to 0, as from_strength cuts them; a single one leaves the picture as it is
    noise   [B, C, h, w]
    change  [B, C, h, w] added at the beginning; None for none
    ->      [B, C, h, w]
    """
    clean, at = edit.clean, levels.tolist()
    latent = torch.lerp(clean, noise, at[0])
    latent = latent if change is None else latent + change
    for now, after in pairwise(at):
        latent = latent + (after - now) * edit.target(latent, now)
        kept = torch.lerp(clean, noise, after)
        latent = kept + edit.masked(latent - kept)
        edit.told(latent)
    return latent


def invert_and_edit(edit: Edit, options: InversionOptions, noise: Tensor) -> Tensor:
    """Go from a picture to noise under its own text, and back under another (RF-inversion, Rout et al. 2024).

    Where the picture is not to be edited, the way back is the straight line to it.

    noise  [B, C, h, w] what gamma draws to
    ->     [B, C, h, w] the edited latent
    """
    levels = from_strength(edit.sigmas, options.strength)
    latent = invert(edit, levels, noise, options)
    steps = len(levels) - 1
    first = min(round(options.eta_from * steps), steps)
    last = max(first, min(round(options.eta_to * steps), steps))
    for eta, part in ((0.0, levels[: first + 1]), (options.eta, levels[first : last + 1]), (0.0, levels[last:])):
        hold: float | Tensor = eta if edit.where is None else 1 - (1 - eta) * edit.where.to(edit.clean)
        latent = follow(drawn_to(edit.target, edit.clean, 0.0, hold), latent, part, options.solver, edit.report)
    return latent


def invert(edit: Edit, levels: Tensor, noise: Tensor, options: InversionOptions) -> Tensor:
    """The noise from which the source's velocity leads to a picture, drawn to a given noise by gamma.

    levels  falling to 0; they are walked upwards
    ->      [B, C, h, w] at the first of the levels
    """
    field = drawn_to(edit.source, noise, 1.0, options.gamma)
    return follow(field, edit.clean, levels.flip(0), options.solver, edit.report)


def drawn_to(velocity: Velocity, end: Tensor, level: float, weight: float | Tensor) -> Velocity:
    """A velocity mixed with the straight line to a latent (the controlled flow of Rout et al. 2024).

    end     [B, C, h, w] where the line leads
    level   noise level at which it arrives there
    weight  0 is the velocity alone, 1 the line alone; a number or a map over the latent
    """
    if not isinstance(weight, Tensor) and weight == 0:
        return velocity

    def mixed(latent: Tensor, sigma: float) -> Tensor:
        line = (end - latent) / (level - sigma)
        return torch.lerp(velocity(latent, sigma), line, weight)

    return mixed


def follow(
    velocity: Velocity, latent: Tensor, levels: Tensor, solver: Solver = "euler", report: Report | None = None
) -> Tensor:
    """Follow a velocity through noise levels, upwards or downwards.

    levels  [S + 1]
    solver  euler takes each step by the velocity at its beginning, midpoint by that at its middle
    ->      [B, C, h, w] at the last level
    """
    for now, after in pairwise(levels.tolist()):
        slope = velocity(latent, now)
        if solver == "midpoint":
            middle = (now + after) / 2
            slope = velocity(latent + (middle - now) * slope, middle)
        latent = latent + (after - now) * slope
        if report:
            report(latent)
    return latent


def _noise(like: Tensor, rng: torch.Generator) -> Tensor:
    """Noise for one picture, spread over the batch."""
    return torch.randn(1, *like.shape[1:], generator=rng).to(like).expand_as(like)

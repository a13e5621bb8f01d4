"""LoRAs whose strength follows the noise level: on a MODEL, and as ComfyUI's own hooks for CONDITIONING.

On a MODEL the LoRA works beside the layers, for the length of each step: the weights are never touched, so precision,
offloading and quantisation do not matter, and a new strength costs nothing. ComfyUI's hooks write the weights anew
whenever a strength changes; they are for prompts with masks and for LoRAs that have no form beside the layer.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from uuid import uuid4

import comfy.hooks
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...core.errors import AtelierError
from ...core.lora.factors import Factors
from ...core.lora.formats.names import is_text
from ...core.lora.kinds import Dense, Hada, Kron, Layer, kind_of
from ...core.lora.record import Lora
from ...core.lora.schedule import Schedule
from .model import SCHEDULE

log = logging.getLogger("flux_atelier")


@dataclass(frozen=True)
class Beside:
    """What a layer of a LoRA adds to the layer's output at strength 1: x @ down^T @ up^T, or x @ up^T, and a bias."""

    up: Tensor | None = None
    down: Tensor | None = None
    bias: Tensor | None = None

    def like(self, x: Tensor) -> "Beside":
        """The same where the layer computes and in its precision."""
        return Beside(*(None if t is None else t.to(x) for t in (self.up, self.down, self.bias)))

    def add(self, out: Tensor, x: Tensor, strength: float) -> Tensor:
        """The layer's output with it, in a tensor of its own."""
        if self.up is not None:
            inner = x if self.down is None else x @ self.down.T
            rows = torch.addmm(out.flatten(0, -2), inner.flatten(0, -2), self.up.T, alpha=strength)
            out = rows.view(out.shape)
        return out if self.bias is None else out + strength * self.bias


@dataclass
class ScheduledLora:
    """A LoRA at work in a MODEL: two wrappers, and its parts where the device has them while it samples."""

    parts: Mapping[str, Beside]
    schedule: Schedule
    ready: dict[tuple[str, torch.device, torch.dtype], Beside] = field(default_factory=dict)

    def around_sampling(self, executor, *args, **kwargs):
        """Let go of the device's copies when a sampling ends, however it ends."""
        try:
            return executor(*args, **kwargs)
        finally:
            self.ready.clear()

    def around_step(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        """One call of the model with the LoRA beside its layers, at the strength of this noise level."""
        base = executor.class_obj
        strength = by_sigma(self.schedule, base.model_sampling).at(float(t.max()))
        if not strength:
            return executor(x, t, *args, **kwargs)
        with ExitStack() as stack:
            for name in self.parts:
                layer = base.diffusion_model.get_submodule(name)
                stack.enter_context(layer.register_forward_hook(self._hook(name, strength)))
            return executor(x, t, *args, **kwargs)

    def _hook(self, name: str, strength: float):
        def hook(_, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return self._part(name, inputs[0]).add(out, inputs[0], strength)

        return hook

    def _part(self, name: str, x: Tensor) -> Beside:
        key = (name, x.device, x.dtype)
        if key not in self.ready:
            self.ready[key] = self.parts[name].like(x)
        return self.ready[key]


def schedule_lora(model, lora: Lora, schedule: Schedule):
    """A clone of a MODEL that carries a LoRA at a strength by the noise level; what it is made of stays as it is.

    Raises AtelierError for a LoRA of another model, and for layers that only work in the weights.
    """
    parts = _parts(lora)
    _refuse_other_sizes(parts, model.model.diffusion_model)
    scheduled, key = ScheduledLora(parts, schedule), f"{SCHEDULE}.{uuid4().hex}"
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, scheduled.around_sampling)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, scheduled.around_step)
    return clone


def _parts(lora: Lora) -> dict[str, Beside]:
    """A LoRA's layers as what they add, text encoders left out."""
    parts = {name: beside(name, layer) for name, layer in lora.modules.items() if not is_text(name)}
    for name, value in lora.vectors.items():
        if is_text(name):
            continue
        if not name.endswith(".bias"):
            raise AtelierError(
                f"The LoRA changes {name}, which only works in the weights. Use LoRA Hooks with Schedule in its place."
            )
        module = name.removesuffix(".bias")
        held = parts.get(module, Beside())
        parts[module] = Beside(held.up, held.down, value)
    return parts


def beside(name: str, layer: Layer) -> Beside:
    """What a layer adds to an output.

    Raises AtelierError for a DoRA or a rotation, whose change depends on the weights.
    """
    if isinstance(layer, Factors) and not layer.normed:
        return Beside(layer.up.float() * layer.scale, layer.down)
    if isinstance(layer, Kron | Hada | Dense):
        return Beside(layer.delta())
    raise AtelierError(
        f"{name} is a {kind_of(layer)}, which only works in the weights. Use LoRA Hooks with Schedule in its place."
    )


def _refuse_other_sizes(parts: dict[str, Beside], inner: nn.Module) -> None:
    """Drop the layers that a model lacks, with a word.

    Raises AtelierError where none is left, or one that is not linear or of another size.
    """
    named = dict(inner.named_modules())
    for name in [name for name in parts if name not in named]:
        log.warning("The MODEL has no %s; that layer of the LoRA does nothing.", name)
        del parts[name]
    if not parts:
        raise AtelierError("The LoRA has no layer that the MODEL has. Choose a LoRA for this model.")
    for name, part in parts.items():
        layer = named[name]
        sizes = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        if None in sizes:
            raise AtelierError(
                f"{name} is a {type(layer).__name__} and no linear layer, so a LoRA cannot work beside it. "
                "Use LoRA Hooks with Schedule in its place."
            )
        last = part.up if part.down is None else part.down
        if part.up is None or last is None:
            continue
        if sizes != (part.up.shape[0], last.shape[1]):
            raise AtelierError(
                f"The LoRA changes {name} of {part.up.shape[0]} x {last.shape[1]}, and the MODEL has "
                f"{sizes[0]} x {sizes[1]}. Choose a LoRA for this model."
            )


def by_sigma(schedule: Schedule, sampling) -> Schedule:
    """A schedule by sigma, per cents turned as ComfyUI turns them for this model."""
    return schedule.in_sigmas(lambda share: min(float(sampling.percent_to_sigma(share)), float(sampling.sigma_max)))


class SigmaKeyframes(comfy.hooks.HookKeyframeGroup):
    """ComfyUI's keyframes, with a strength for every noise level in place of a list of ranges."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.current, self._sigmas = schedule, 1.0, schedule

    @property
    def strength(self) -> float:
        return self.current

    def clone(self) -> "SigmaKeyframes":
        return SigmaKeyframes(self.schedule)

    def initialize_timesteps(self, model) -> None:
        self._sigmas = by_sigma(self.schedule, model.model_sampling)

    def prepare_current_keyframe(self, curr_t, transformer_options) -> bool:
        before, self.current = self.current, self._sigmas.at(float(curr_t))
        return self.current != before


def lora_hooks(tensors: dict[str, Tensor], schedule: Schedule, before=None):
    """ComfyUI's HOOKS for a LORA_MODEL on the diffusion model alone, at a strength by the noise level.

    before  HOOKS that these are added to, or None
    """
    hooks = comfy.hooks.create_hook_lora(tensors, 1.0, 0.0)
    for hook in hooks.hooks:
        hook.hook_keyframe = SigmaKeyframes(schedule)
    return hooks if before is None else before.clone_and_combine(hooks)

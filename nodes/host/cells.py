"""Drawing for the test bench: any of ComfyUI's samplers and schedules, and the identity of all that draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor, nn

from ...core.errors import AtelierError
from ...core.evaluation.cells import Settings
from ...core.files import digest_of
from ...core.images import to_picture
from .drawing import GraphEncoder, condition, with_lora
from .model import fingerprint, some_values, unpatched
from .progress import check_cancel

DEEPEST = 5  # levels that a model's options are read down to


def sampler_names() -> list[str]:
    """ComfyUI's samplers, with those that other packs have added."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """ComfyUI's schedules, with those that other packs have added."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True)
class Painter:
    """Draws pictures of one size with the graph's own encoders and one sampler and schedule."""

    clip: Any
    vae: Any
    width: int
    height: int
    sampler: str
    scheduler: str

    def common(self, model) -> dict[str, str | int]:
        """Digests and names of all that every picture of this painter depends on."""
        encoder = GraphEncoder(model, self.clip, self.vae)
        return {
            "model": drawing_id(model), "text": encoder.text_id, "vae": encoder.vae_id, "width": self.width,
            "height": self.height, "sampler": self.sampler, "scheduler": self.scheduler,
        }  # fmt: skip

    def encode(self, prompt: str) -> list:
        """A prompt as conditioning, without guidance."""
        return condition(self.clip, prompt)

    def draw(self, model, conditioning: list, settings: Settings) -> Image.Image:
        """Sample at cfg 1 and decode one picture; raises ComfyUI's interrupt if the person cancels."""
        positive = [[states, {**extra, "guidance": settings.guidance}] for states, extra in conditioning]
        latent = torch.zeros(1, 16, self.height // 8, self.width // 8)
        noise = comfy.sample.prepare_noise(latent, settings.seed)
        drawn = comfy.sample.sample(
            model, noise, settings.steps, 1.0, self.sampler, self.scheduler, positive, positive, latent,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=settings.seed, callback=lambda *_: check_cancel(),
        )  # fmt: skip
        return to_picture(self.vae.decode(drawn)[0].permute(2, 0, 1))


def with_lora_named(model, tensors: Mapping[str, Tensor], strength: float, name: str):
    """A clone of a MODEL with a LoRA applied; raises AtelierError if none of its layers is the model's."""
    patched = with_lora(model, dict(tensors), strength)
    if sum(map(len, patched.patches.values())) == sum(map(len, model.patches.values())):
        raise AtelierError(f"{name} has no layer of this MODEL. Take a LoRA that was made for it.")
    return patched


def drawing_id(model) -> str:
    """A digest of a MODEL with all that nodes before have set on it: weights, patches, shift, options, wrappers.

    What other packs hang on a model counts by its kind and its plain values, as deep as DEEPEST.
    """
    sampling = model.get_model_object("model_sampling")
    hung = [sampling, model.object_patches, model.model_options, model.wrappers, model.injections]
    return digest_of(
        [[name, *some_values(v)] for name, v in sorted(unpatched(model).items())],
        _patches(model),
        [_described(part, DEEPEST) for part in hung],
    )


def _patches(model) -> list:
    """Weight patches with their strengths, and some of their values."""
    return [
        [str(name), *[[str(p[0]), str(p[2]), *some_values(p[1])] for p in patches]]
        for name, patches in sorted(model.patches.items(), key=lambda pair: str(pair[0]))
    ]


def _described(value: object, depth: int) -> object:
    """Plain values of anything, the same in every process for what is the same."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return some_values(value)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    if depth == 0:
        return name
    if isinstance(value, Mapping):
        return sorted(([str(k), _described(v, depth - 1)] for k, v in value.items()), key=lambda pair: pair[0])
    if isinstance(value, (list, tuple)):
        return [_described(v, depth - 1) for v in value]
    if isinstance(value, nn.Module):
        # Parameters count by their sizes: their values change while ComfyUI has patches on them.
        plain = {k: v for k, v in vars(value).items() if isinstance(v, (bool, int, float, str))}
        sizes = {k: list(v.shape) for k, v in value.named_parameters()}
        return [name, sorted(plain.items()), sizes, {k: some_values(v) for k, v in value.named_buffers()}]
    if hasattr(value, "patches") and hasattr(value, "backup"):
        return [name, fingerprint(value)]
    return [name, _parts(value, depth - 1)]


def _parts(value: object, depth: int) -> object:
    """What a function has closed over, or what an object holds."""
    if isinstance(value, MethodType):
        return [_described(value.__self__, depth), value.__name__]
    if isinstance(value, FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or () if _filled(c)]
        return [_described(part, depth) for part in (*cells, *(value.__defaults__ or ()))]
    return _described(vars(value), depth) if hasattr(value, "__dict__") and not isinstance(value, type) else []


def _filled(cell) -> bool:
    """Whether a closure's variable has a value yet."""
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False

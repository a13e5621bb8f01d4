"""Drawing a clip's frames with ComfyUI's sampler, and noise that moves with a clip as a NOISE."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...core.errors import AtelierError
from ...core.files import digest_of
from ...core.frames.interpolate import clean
from ...core.frames.restyle import Canvas, Sketch
from ...core.frames.warped_noise import warped_noise
from ...core.style.structure import PIXELS, StructureOptions, from_strength
from .cells import drawing_id
from .drawing import condition
from .editing import guide_structure, in_model_scale
from .model import fingerprint, some_values
from .progress import check_cancel


@dataclass(frozen=True)
class ClipPainter:
    """Draws frames with the graph's own model, from part of the way to noise; the MODEL stays as it is.

    prompts    one for all shots, or one for each; shots after the last one have the last one's
    strength   share of the way back to noise: 0 keeps the picture that is started from, 1 forgets it
    steps      of the whole way
    structure  what is kept of the source's layout
    """

    model: Any
    clip: Any
    vae: Any
    prompts: tuple[str, ...]
    guidance: float
    strength: float
    steps: int
    structure: StructureOptions

    def canvas(self, height: int, width: int, seed: int) -> Canvas:
        """Encode the prompts and draw frames of a size, multiples of 16 pixels."""
        texts = [condition(self.clip, prompt, self.guidance) for prompt in self.prompts]
        schedule = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", self.steps)
        levels = from_strength(schedule, self.strength)
        channels = self.model.model.latent_format.latent_channels

        def draw(sketch: Sketch) -> Tensor:
            check_cancel()
            if len(levels) < 2:
                return sketch.start
            return self._drawn(sketch, texts[min(sketch.shot, len(texts) - 1)], levels)

        return Canvas(draw, (channels, height // PIXELS, width // PIXELS), seed)

    def _drawn(self, sketch: Sketch, text: list, levels: Tensor) -> Tensor:
        start, model = self._encoded(sketch.start), self.model
        in_model_scale(self.model, start)  # tells of another model's VAE before the sampler fails on it
        if self.structure.amount:
            source = start if sketch.start is sketch.source else self._encoded(sketch.source)
            model = guide_structure(model, source, self.structure)
        drawn = comfy.sample.sample_custom(
            model, sketch.noise[None].to(start), 1.0, comfy.samplers.sampler_object("euler"), levels, text, text, start,
            callback=lambda *_: check_cancel(), disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0,
        )  # fmt: skip
        return self.vae.decode(drawn)[0].permute(2, 0, 1).to(sketch.start).clamp(0, 1)

    def _encoded(self, frame: Tensor) -> Tensor:
        """[3, H, W] in 0..1 -> [1, C, h, w] raw VAE scale."""
        return self.vae.encode(frame.permute(1, 2, 0)[None])

    def key(self) -> str:
        """Tells a painter that draws the same."""
        texts = [[some_values(v) for v in self._text_values(prompt)] for prompt in self.prompts]
        settings = self.guidance, self.strength, self.steps, self.structure.model_dump()
        return digest_of(drawing_id(self.model), fingerprint(self.vae.patcher), texts, *settings)

    def _text_values(self, prompt: str) -> list:
        states, extra = condition(self.clip, prompt)[0]
        return [prompt, states, extra.get("pooled_output")]


class WarpedNoise:
    """A NOISE for SamplerCustomAdvanced: for each frame of a batch noise that moves as the clip does."""

    def __init__(self, frames: Sequence[Tensor], seed: int, finer: int, cuts: Collection[int] = ()):
        """Keep what the noise is made of; its size is known when a latent asks for it.

        frames  [3, H, W] in 0..1, of any float type
        seed    of the noise
        finer   cells along a side of one value of the latent
        cuts    frames that begin a new shot
        """
        self.frames, self.seed, self.finer, self.cuts = frames, seed, finer, cuts

    def generate_noise(self, input_latent: dict) -> Tensor:
        """Noise for a LATENT with as many pictures as the clip has frames; raises AtelierError for another number."""
        latent = input_latent["samples"]
        if len(latent) != len(self.frames) or latent.ndim != 4:
            raise AtelierError(
                f"The latent has {len(latent)} pictures and the clip {len(self.frames)} frames. "
                "Encode the frames that Warped Noise was given, as one batch."
            )
        size = latent.shape[1], latent.shape[2], latent.shape[3]
        rows, frames = [], (clean(frame.float()) for frame in self.frames)
        for noise in warped_noise(frames, size, self.seed, cuts=self.cuts, finer=self.finer):
            check_cancel()
            rows.append(noise)
        return torch.stack(rows).to(latent.dtype)

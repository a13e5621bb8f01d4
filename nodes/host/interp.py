"""Core's own interpolation models (the INTERP_MODEL socket: RIFE 4.25 and 4.26, FILM) as one more way to make frames.

A way to make frames is a `Between` of core/frames/interpolate: called with two frames [C, H, W] in 0..1 and a time in
0..1 it gives one frame like them, on their device. It is opened in an ExitStack, so that it may hold a process or
memory for as long as a clip lasts, and is asked pair by pair in order, with the very tensors again while the pair is
the same. A model of another family (AMT, EMA-VFI) fits by the same three things that this class uses of core's:
`extract_features(img)`, `forward(img0, img1, timestep, cache)` with images [1, 3, H, W], and `pad_align`, the pixels
that sides must be multiples of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management as memory
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import AtelierError
from ...core.frames.alpha import covering, uncovered
from .model import fingerprint

LEAST = 64  # pixels: FILM halves a picture six times


@dataclass(frozen=True)
class Known:
    """A part of a frame as a model has seen it.

    frame     the given one, by which it is known again
    part      "colours" or "alpha"
    padded    [1, 3, H', W'] on the model's device
    features  the model's own
    """

    frame: Tensor
    part: str
    padded: Tensor
    features: Any


class InterpolationModel:
    """An INTERP_MODEL as a context: `with InterpolationModel(patcher) as between: between(first, second, 0.5)`."""

    def __init__(self, patcher, waiting: Callable[[], object] = lambda: None):
        """Look at the model; its weights go to their device with the first frame.

        patcher  what Load Frame Interpolation Model gives
        waiting  called before each frame; what it raises goes on
        Raises AtelierError if it is no interpolation model.
        """
        net: Any = getattr(patcher, "model", None)
        if not hasattr(net, "extract_features") or not hasattr(patcher, "load_device"):
            raise AtelierError(
                "What is connected to interp_model is no frame interpolation model. "
                "Connect ComfyUI's Load Frame Interpolation Model."
            )
        self.patcher, self.net, self._waiting = patcher, net, waiting
        self.align = getattr(net, "pad_align", 1)
        self._shelf: list[Known] = []
        self._loaded_for: torch.Size | None = None

    def __enter__(self) -> "InterpolationModel":
        return self

    def __exit__(self, *_) -> None:
        self._forget()

    @property
    def key(self) -> str:
        """A name for the model by its weights."""
        return f"{type(self.net).__name__} {fingerprint(self.patcher)}"

    def __call__(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        """The frame between two.

        first, second  [C, H, W] in 0..1, one to four channels, of one size
        time           0..1
        ->             [C, H, W], dtype and device of the first
        Raises AtelierError if the device has no room for it.
        """
        self._waiting()
        self._load(first)
        try:
            made = self._made(first, second, time)
        except memory.OOM_EXCEPTION:
            made = None
        if made is None:  # once more with what was held given back; outside the handler, which holds the tensors
            made = self._again(first, second, time)
        return made.to(first)

    def _again(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        self._forget()
        try:
            return self._made(first, second, time)
        except memory.OOM_EXCEPTION:
            self._forget()
            raise AtelierError(
                f"The interpolation model has no room in memory for frames of {first.shape[2]} x {first.shape[1]} "
                "pixels. Make them smaller, or choose the flow method."
            ) from None

    @torch.inference_mode()
    def _made(self, first: Tensor, second: Tensor, time: float) -> Tensor:
        """One frame on the CPU."""
        colours = 3 if len(first) > 2 else 1
        made = [self._pass("colours", first, second, time)[:colours]]
        if len(first) > colours:
            alphas = first[colours:], second[colours:]
            same = torch.equal(*alphas)
            made.append(alphas[0].float().cpu() if same else self._pass("alpha", first, second, time)[:1])
        return uncovered(torch.cat(made).clamp(0, 1))

    def _pass(self, part: str, first: Tensor, second: Tensor, time: float) -> Tensor:
        """One run of the model over RGB, or over one channel three times, [3, H, W] float32 on the CPU."""
        a, b = self._known(part, first), self._known(part, second)
        cache = {"img0": a.features, "img1": b.features}
        several = getattr(self.net, "forward_multi_timestep", None)
        if several is not None:
            made = several(a.padded, b.padded, [time], cache=cache)
        else:
            at = a.padded.new_full((1, 1, *a.padded.shape[-2:]), time)
            made = self.net(a.padded, b.padded, timestep=at, cache=cache)
        height, width = first.shape[-2:]
        made = made[0, :, :height, :width].float().cpu()
        return made if part == "colours" and len(first) > 2 else made.mean(0, keepdim=True).expand(3, -1, -1)

    def _known(self, part: str, frame: Tensor) -> Known:
        """A frame with its features, worked out once: the second of a pair is the first of the next."""
        for known in self._shelf:
            if known.frame is frame and known.part == part:
                return known
        colours = 3 if len(frame) > 2 else 1
        seen = covering(frame)
        padded = self._padded(seen[:colours] if part == "colours" else seen[colours:])
        made = Known(frame, part, padded, self.net.extract_features(padded))
        parts = {known.part for known in self._shelf} | {part}
        self._shelf = [*self._shelf, made][-2 * len(parts) :]
        return made

    def _padded(self, pixels: Tensor) -> Tensor:
        """[1 or 3, H, W] -> [1, 3, H', W'] as the model wants it, the last row and column repeated."""
        pixels = pixels.expand(3, -1, -1)[None].to(self.patcher.load_device, self.patcher.model_dtype())
        sides = [max(LEAST, -(-side // self.align) * self.align) for side in pixels.shape[-2:]]
        down, across = (want - side for want, side in zip(sides, pixels.shape[-2:], strict=True))
        return F.pad(pixels, (0, across, 0, down), mode="replicate")

    def _load(self, frame: Tensor) -> None:
        """Bring the weights to their device with room for a frame's work, once for each size."""
        if self._loaded_for == frame.shape:
            return
        self._forget()
        height, width = (max(LEAST, side + -side % self.align) for side in frame.shape[-2:])
        wanted = self.net.memory_used_forward((1, height, width, 3), self.patcher.model_dtype())
        memory.load_models_gpu([self.patcher], memory_required=wanted)
        self._loaded_for = frame.shape

    def _forget(self) -> None:
        """Give back what is held of frames."""
        self._shelf = []
        memory.soft_empty_cache()

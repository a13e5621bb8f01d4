"""A clip drawn again frame by frame, each frame from the one before: the loop around whatever draws one picture.

What was drawn is carried along the source's motion, mixed into the picture that the next frame starts from, and mixed
into the result once more; the noise moves with the clip. Everything begins anew where a shot does. Two frames are held,
or as many as lie between two anchors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..options import Options
from ..style.color import LinearMap, fit_map, transfer_color
from .cuts import is_cut
from .flow import Flow, best_flow
from .interpolate import clean
from .stabilise import carry_between, hold, sample, strengthen, trust_in
from .warped_noise import NoiseField, follow, fresh_noise


class RestyleOptions(Options):
    """How the frames of a restyled clip are held together."""

    coherence: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Share of the frame drawn before, carried along the motion, in the picture that a frame starts "
        "from; 0 starts each from its own source.",
    )
    noise: Literal["warped", "fixed", "fresh"] = Field(
        default="warped",
        description="warped: the noise moves with the clip, and so do the strokes; fixed: the same in every frame; "
        "fresh: another in each.",
    )
    steadiness: float = Field(
        default=0.95,
        ge=0,
        le=0.98,
        description="Share of the carried frame in what was drawn; 0 leaves frames as drawn.",
    )
    detail: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Least strength of the strokes, as a share of a drawn frame's; 0 lets them soften.",
    )
    palette: float = Field(
        default=0.5, ge=0, le=1, description="How far each shot's frames keep the colours that its first one was given."
    )
    anchor_every: int = Field(
        default=0,
        ge=0,
        le=120,
        description="Every so many frames one is drawn from its source alone, and those between follow the two beside "
        "them: nothing drifts. 0 draws on from frame to frame.",
    )


@dataclass(frozen=True)
class Sketch:
    """What one frame is drawn from.

    source  [3, H, W] in 0..1
    start   [3, H, W] in 0..1, the picture to start at: the source, with what was drawn before mixed in
    noise   [C, h, w] standard normal, on the CPU
    number  of the frame, from 0
    shot    number of its shot, from 0
    """

    source: Tensor
    start: Tensor
    noise: Tensor
    number: int
    shot: int


Draw = Callable[[Sketch], Tensor]


@dataclass(frozen=True)
class Canvas:
    """What draws frames, and the noise it wants.

    draw  [3, H, W] in 0..1 for a Sketch, of any float type and on any device
    size  channels, height and width of its latent
    seed  of the noise; frame n of fresh noise has seed + n
    """

    draw: Draw
    size: tuple[int, int, int]
    seed: int = 0


@dataclass(frozen=True)
class Memory:
    """What is known behind a frame: all that the rest of the clip depends on.

    number, shot  of that frame
    source        [3, H, W], as it came
    drawn         [3, H, W], as it is carried on: before its strokes were strengthened
    noise         at that frame
    rng           state of the generator that new noise comes from
    palette       the map from the shot's colours to those it is drawn in, where it could be fitted
    """

    number: int
    shot: int
    source: Tensor
    drawn: Tensor
    noise: NoiseField
    rng: Tensor
    palette: LinearMap | None = None


class Restyled(NamedTuple):
    """A frame, and the memory behind it where the clip can be gone on with from there."""

    picture: Tensor
    memory: Memory | None


def restyle(
    frames: Iterable[Tensor], canvas: Canvas, options: RestyleOptions | None = None, flow: Flow | None = None
) -> Iterator[Tensor]:
    """Draw a clip again, coherent in time.

    Without coherence, steadiness and palette, and with fixed or fresh noise, it is exactly drawn frame by frame.

    frames  [3, H, W] in 0..1
    flow    how the source's motion is estimated; the better of what is installed when left out
    ->      [3, H, W] in 0..1, as many, float32 and where the frames are
    """
    for step in restyle_from(None, frames, canvas, options, flow):
        yield step.picture


def restyle_from(
    memory: Memory | None,
    frames: Iterable[Tensor],
    canvas: Canvas,
    options: RestyleOptions | None = None,
    flow: Flow | None = None,
) -> Iterator[Restyled]:
    """Go on with a clip behind a frame, to the same pictures as if it had never been left.

    memory  behind the last frame that is done; None at the beginning of the clip
    frames  those after it
    The rest as in restyle.
    """
    loop = Loop(canvas, options or RestyleOptions(), flow or best_flow())
    # One value that is no number would be carried through the rest of its shot.
    fit = (clean(frame.float()) for frame in frames)
    return loop.anchored(memory, fit) if loop.options.anchor_every else loop.chained(memory, fit)


@dataclass(frozen=True)
class Loop:
    """The two ways through a clip: each frame from the one before, or between anchors."""

    canvas: Canvas
    options: RestyleOptions
    flow: Flow

    def chained(self, memory: Memory | None, frames: Iterable[Tensor]) -> Iterator[Restyled]:
        """Draw each frame from the one before."""
        for frame in frames:
            if memory is None or is_cut(memory.source, frame):
                memory = self.opened(memory, frame)
                yield Restyled(memory.drawn, memory)
                continue
            memory, carried, trust = self.moved(memory, frame)
            memory, picture = self.drawn(memory, carried, trust)
            yield Restyled(picture, memory)

    def anchored(self, memory: Memory | None, frames: Iterable[Tensor]) -> Iterator[Restyled]:
        """Draw anchors from their source, then the frames between two of them from both."""
        span: list[Tensor] = []  # frames since the anchor
        for frame in frames:
            last = span[-1] if span else memory and memory.source
            if memory is None or last is None or is_cut(last, frame):
                for step in self.between(memory, span):
                    memory = step.memory or memory
                    yield step
                memory, span = self.opened(memory, frame), []
                yield Restyled(memory.drawn, memory)
                continue
            span.append(frame)
            if len(span) == self.options.anchor_every:
                for step in self.between(memory, span):
                    memory = step.memory or memory
                    yield step
                span = []
        yield from self.between(memory, span)

    def between(self, start: Memory | None, span: list[Tensor]) -> Iterator[Restyled]:
        """Draw the frames behind an anchor; the last of them is the next anchor."""
        if start is None or not span:
            return
        memories, memory = [], start
        for frame in span:
            memory = self.moved(memory, frame)[0]
            memories.append(memory)
        end, picture = self.drawn(memories[-1])
        source = [start.source, *span]
        carried = carry_between(source, {0: start.drawn, len(span): end.drawn}, self.flow)
        for n, memory in enumerate(memories[:-1], 1):
            yield Restyled(self.drawn(replace(memory, palette=end.palette), *carried[n])[1], None)
        yield Restyled(picture, end)

    def opened(self, before: Memory | None, frame: Tensor) -> Memory:
        """Draw the first frame of a shot."""
        rng = torch.Generator()
        rng.manual_seed(self.canvas.seed) if before is None else rng.set_state(before.rng)
        number, shot = (before.number + 1, before.shot + 1) if before else (0, 0)
        noise = fresh_noise(*self.canvas.size, rng)
        memory = Memory(number, shot, frame, frame, noise, rng.get_state())
        return self.drawn(memory)[0]

    def moved(self, memory: Memory, frame: Tensor) -> tuple[Memory, Tensor, Tensor]:
        """Come to the next frame of a shot: the noise there, what was drawn carried to it, and the trust in that."""
        memory = replace(memory, number=memory.number + 1)
        if self.options.noise != "warped" and not self.options.coherence and not self.options.steadiness:
            return replace(memory, source=frame), frame, torch.zeros_like(frame[:1])
        motion = self.flow(frame, memory.source)
        moved = sample(torch.cat([memory.drawn, memory.source]), motion)
        trust = trust_in(motion, frame, moved[3:])
        if self.options.noise == "warped":
            rng = torch.Generator()
            rng.set_state(memory.rng)
            memory = replace(memory, noise=follow(memory.noise, motion, trust, rng), rng=rng.get_state())
        return replace(memory, source=frame), moved[:3].clamp(0, 1), trust

    def drawn(
        self, memory: Memory, carried: Tensor | None = None, trust: Tensor | None = None
    ) -> tuple[Memory, Tensor]:
        """Draw a frame and hold it to what was carried to it.

        carried, trust  [3, H, W] and [1, H, W]; a frame without them is drawn from its source alone
        ->              the memory behind the frame, and the picture
        """
        options, frame = self.options, memory.source
        start = frame
        if carried is not None and trust is not None and options.coherence:
            start = torch.lerp(frame, carried, options.coherence * trust)
        picture = self.canvas.draw(Sketch(frame, start, self.noise_at(memory), memory.number, memory.shot))
        picture = clean(picture.to(frame))
        memory, picture = self.coloured(memory, picture)
        if carried is None or trust is None or not options.steadiness:
            return replace(memory, drawn=picture), picture
        held = hold(picture, carried, options.steadiness * trust)
        return replace(memory, drawn=held), strengthen(held, picture, options.detail)

    def noise_at(self, memory: Memory) -> Tensor:
        """The noise that a frame is drawn from."""
        if self.options.noise == "warped":
            return memory.noise.values
        seed = self.canvas.seed + (memory.number if self.options.noise == "fresh" else 0)
        return fresh_noise(*self.canvas.size, torch.Generator().manual_seed(seed)).values

    def coloured(self, memory: Memory, picture: Tensor) -> tuple[Memory, Tensor]:
        """Give a drawn frame the colours that the shot's first one would have given its source."""
        if not self.options.palette:
            return memory, picture
        if memory.palette is None:
            # A shot that fades in from black has no palette yet; the first frame with colours gives it.
            fitted = fit_map(memory.source[None], picture[None])
            return replace(memory, palette=fitted) if isinstance(fitted, LinearMap) else memory, picture
        wanted = memory.palette(memory.source[None]).clamp(0, 1)
        return memory, transfer_color(picture[None], wanted, self.options.palette)[0]

"""How much memory and time a training takes, setting by setting, before it starts.

Activations are counted in numbers per token and hidden feature; the counts were read off the forward in
trainer/flux/forward.py and are held to the measured peak by a test. A setting is a place on the dial between memory
and speed: how many blocks are computed again in backward, and whether what is kept waits in RAM.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..core.flux.layout import FluxShape
from . import targets
from .cache import Sample
from .config import TrainOptions
from .flux.forward import plan_checkpoints
from .flux.tree import FluxTree

LADDER = ((0.0, False), (0.25, False), (0.5, False), (0.75, False), (1.0, False), (1.0, True))  # fastest first
STATE = 16  # bytes per trained number: float32 weight, gradient and AdamW's two moments
EFFICIENCY = 0.6  # of a plain matrix product's rate, over a whole step
RESERVE = 0.05  # of free memory, left to the allocator


@dataclass(frozen=True)
class Counts:
    """Bytes per token and hidden feature: kept by a double and a single block, at work in a block, and at the end."""

    double: float
    single: float
    working: float
    last: float
    width: int


COUNTS = {2: Counts(40.5, 34.3, 50.0, 14.8, 2), 4: Counts(81.0, 68.5, 93.0, 28.5, 4)}


@dataclass(frozen=True)
class Setting:
    """A place on the dial, and what is expected there: bytes on the device and in RAM, seconds per step."""

    share: float
    offload: bool = False
    device_bytes: int = 0
    ram_bytes: int = 0
    seconds: float = 0.0
    streamed: float = 0.0  # share of the model's weights that wait in RAM and come when they are needed

    def describe(self) -> str:
        """The setting in words."""
        again = f"{self.share:.0%} of the blocks are computed again in backward"
        return f"{again}, and what is kept waits in RAM" if self.offload else again


def fixed_setting(options: TrainOptions) -> Setting:
    """The setting that options name; with gradient_checkpointing at -1 the one that needs least without offloading."""
    share = options.gradient_checkpointing
    return Setting(1.0 if share < 0 else share, options.offload_activations)


def cheaper(setting: Setting) -> Setting | None:
    """The next setting that needs less memory, or None."""
    lower = next(((s, o) for s, o in LADDER if s > setting.share and not setting.offload), None)
    if lower is None and not setting.offload:
        lower = 1.0, True
    return None if lower is None else replace(setting, share=lower[0], offload=lower[1])


@dataclass(frozen=True)
class Device:
    """What a device can do: bytes free beside the model, operations and transferred bytes per second."""

    free: int
    rate: float
    transfer: float


@dataclass(frozen=True)
class Task:
    """What is to be trained: the model's sizes and weight bytes, trained numbers, tokens, batch."""

    shape: FluxShape
    weights: int
    trained: int
    tokens: int
    batch: int
    passes: int
    width: int  # bytes of a number in the computation
    unpacked: bool = True  # weights become a copy in the computation's precision, one layer at a time

    @classmethod
    def of(
        cls, shape: FluxShape, weights: int, trained: int, samples: Sequence[Sample], options: TrainOptions, width: int,
        words: int = 512,
    ) -> "Task":  # fmt: skip
        """The task of a run; the largest picture counts, and the longest text."""
        most = max((s.tokens * (2 if s.control else 1) for s in samples), default=(options.data.resolution // 16) ** 2)
        passes = options.data.accumulation * (3 if options.objective.prior_weight else 1)
        return cls(shape, weights, trained, most + words, options.data.batch_size, passes, width)

    @property
    def operations(self) -> float:
        """Floating-point operations of a forward pass over the batch."""
        h, blocks = self.shape.hidden, self.shape.double + self.shape.single
        per_token = 2 * (4 * h * h + 2 * h * self.shape.mlp) + 4 * self.tokens * h
        return float(self.batch * self.tokens * blocks * per_token)

    def block_bytes(self, share: float) -> list[int]:
        """Bytes that autograd keeps of each block, in order, when this share of them is computed again."""
        counts, unit = COUNTS[self.width], self.batch * self.tokens * self.shape.hidden
        again = plan_checkpoints(self.shape.double, self.shape.single, share)
        kinds = [("double", i, counts.double, 8) for i in range(self.shape.double)]
        kinds += [("single", i, counts.single, 2) for i in range(self.shape.single)]
        # A layer's low-rank activations, at the adapter's mean rank.
        layers = 8 * self.shape.double + 2 * self.shape.single
        low = self.batch * self.tokens * self.width * self.trained / max(1, layers * 5 * self.shape.hidden)
        return [
            int(unit * counts.width if f"{kind}.{i}" in again else unit * whole + low * adapted)
            for kind, i, whole, adapted in kinds
        ]

    def kept(self, share: float) -> int:
        """Bytes that autograd keeps from forward to backward."""
        return sum(self.block_bytes(share))

    def peak(self, share: float) -> int:
        """Bytes beside the model's weights at the worst moment of a step, the adapter's state included.

        That moment is the backward of some block: what the blocks before it keep, and what it works with itself.
        """
        counts, unit = COUNTS[self.width], self.batch * self.tokens * self.shape.hidden
        again = plan_checkpoints(self.shape.double, self.shape.single, share)
        names = [f"double.{i}" for i in range(self.shape.double)] + [f"single.{i}" for i in range(self.shape.single)]
        before, worst = 0, 0.0
        for name, kept in zip(names, self.block_bytes(share), strict=True):
            before += kept
            worst = max(worst, before + unit * (counts.working if name in again else counts.last))
        layer = self.shape.hidden * (3 * self.shape.hidden + self.shape.mlp) * self.width if self.unpacked else 0
        return int(worst + self.trained * STATE + layer)


def settings(task: Task, device: Device) -> list[Setting]:
    """Every setting with what it is expected to need; those that cannot run are left out."""
    found, room = [], device.free * (1 - RESERVE)
    for share, offload in LADDER:
        needed, kept = task.peak(share), task.kept(share)
        if offload:
            needed -= kept
        left = room - needed
        streamed = min(1.0, max(0.0, 1 - left / task.weights)) if task.weights else 0.0
        if left < 0.02 * task.weights or ((streamed or offload) and not device.transfer):
            continue
        compute = task.operations * task.passes * (2 + share) / (device.rate * EFFICIENCY)
        # Weights come while others are at work, once in forward, once in backward, once more where it is done again.
        moved = streamed * task.weights * (2 + share) * task.passes + (2 * kept if offload else 0)
        seconds = max(compute, moved / device.transfer) if moved else compute
        ram = int(streamed * task.weights + (kept if offload else 0))
        found.append(Setting(share, offload, needed, ram, seconds, streamed))
    return found


def choose(found: Sequence[Setting], options: TrainOptions) -> Setting:
    """The fastest setting, or the one that options name where they name one."""
    if options.gradient_checkpointing >= 0 or options.offload_activations or not found:
        fixed = fixed_setting(options)
        near = [s for s in found if s.offload == fixed.offload and s.share >= fixed.share]
        return replace(near[0], share=fixed.share) if near else fixed
    return min(found, key=lambda s: (s.seconds * (1.02 if s.offload else 1.0), s.share))


def plan_table(found: Sequence[Setting], chosen: Setting, task: Task, steps: int) -> str:
    """The settings as a table to read before the training, the chosen one marked."""
    rows = ["  blocks again  memory beside model  in RAM  model streamed  per step     in all"]
    for s in found:
        mark = ">" if (s.share, s.offload) == (chosen.share, chosen.offload) else " "
        share = f"{s.share:.0%}" + (" + RAM" if s.offload else "")
        rows.append(
            f"{mark} {share:<12}  {s.device_bytes / 2**30:>13.2f} GiB  {s.ram_bytes / 2**30:>5.1f}"
            f"  {s.streamed:>14.0%}  {s.seconds:>6.2f} s  {s.seconds * steps / 60:>5.0f} min"
        )
    if not found:
        rows.append("  nothing fits: lower the resolution, the batch size or the rank, or load the model in fp8")
    return "\n".join(rows)


@dataclass(frozen=True)
class Plan:
    """What a run is expected to need: every setting, the chosen one, and all of it in words."""

    task: Task
    settings: tuple[Setting, ...]
    chosen: Setting
    text: str

    @property
    def page(self) -> str:
        """The line, and below it everything."""
        return f"{self.line}\n\n{self.text}\n"

    @property
    def line(self) -> str:
        """The plan in one line."""
        s = self.chosen
        streamed = f", {s.streamed:.0%} of the model streamed" if s.streamed else ""
        return f"{s.describe()}{streamed}; {s.device_bytes / 2**30:.2f} GiB beside the model, {s.seconds:.2f} s a step"


def plan_run(
    shape: FluxShape, weights: int, samples: Sequence[Sample], options: TrainOptions, device: torch.device, free: int,
    words: int = 512,
) -> Plan:  # fmt: skip
    """Work out what every setting needs on a device, and choose the fastest that fits.

    weights  bytes of the model that have to find room on the device; 0 where they are there already
    free     bytes free on it
    """
    with torch.device("meta"):
        chosen_layers = targets.choose(FluxTree(shape), options.adapter)
    half = computes_in_half(options, device)
    trained = targets.parameters(chosen_layers, options.adapter)
    task = Task.of(shape, weights, trained, samples, options, 2 if half else 4, words)
    dtype = torch.bfloat16 if half else torch.float32
    found = settings(task, measure_device(device, free, dtype))
    chosen = choose(found, options)
    head = f"{targets.summary(chosen_layers, options.adapter)}\n{free / 2**30:.1f} GiB free on {device}, "
    head += f"model {weights / 2**30:.1f} GiB, {task.tokens} tokens, batch {task.batch}, {str(dtype)[6:]}\n"
    return Plan(task, tuple(found), chosen, head + plan_table(found, chosen, task, options.steps))


def computes_in_half(options: TrainOptions, device: torch.device) -> bool:
    """Whether a run computes in bfloat16 or float16: as asked, or by what the device can do."""
    if options.precision != "auto":
        return options.precision != "float32"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def measure_device(device: torch.device, free: int, dtype: torch.dtype) -> Device:
    """Measure how fast a device multiplies and how fast weights come to it, in a fraction of a second."""
    size = 4096 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device, dtype=dtype)
    rate = 2 * size**3 * 4 / _seconds(lambda: [a @ a for _ in range(4)], device)
    if device.type != "cuda":
        return Device(free, rate, 0.0)
    block = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
    return Device(free, rate, block.nbytes / _seconds(lambda: block.to(device, non_blocking=True), device))


def _seconds(work, device: torch.device) -> float:
    """Seconds of a piece of work, the best of three, after one to warm up."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return max(min(times[1:]), 1e-9)

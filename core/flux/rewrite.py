"""A checkpoint written again, some rows of a parameter at a time: changed, in another precision, or both.

What is in memory does not grow with the file or with its widest tensor. A sum is taken in float32 and rounded once.
What stays as it is, and all that is no transformer parameter, is copied byte for byte.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import AtelierError
from ..tensor_stream import DTYPES, FLOATS, Planned, TensorWriter, writing
from .checkpoint import LISTED, MARK, SCALES, Checkpoint, Rows, spans

Precision = Literal["same", "bf16", "fp16", "fp32", "fp8"]
KINDS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
FP8 = "F8_E4M3"
LEAST = 1e-12  # scale of a layer of zeros
# Bits after the point, and the exponent below which numbers no longer get finer.
BITS = {
    "F64": (52, -1022),
    "F32": (23, -126),
    "F16": (10, -14),
    "BF16": (7, -126),
    "F8_E4M3": (3, -6),
    "F8_E5M2": (2, -14),
}
Change = Callable[[Tensor, int], Tensor]  # rows of a parameter in float32, number of the first -> what they become


@dataclass(frozen=True)
class Grid:
    """The values a tensor can have in a file: those of its kind, times a scale, which only fp8 has."""

    kind: str
    scale: float = 1.0

    def rounded(self, values: Tensor) -> Tensor:
        """float32 values as the file has them."""
        if self.kind.startswith("F8"):
            most = torch.finfo(DTYPES[self.kind]).max  # beyond it the cast gives NaN
            values = (values / self.scale if self.scale != 1 else values).clamp(-most, most)
        return values.to(DTYPES[self.kind])

    def value(self, stored: Tensor) -> Tensor:
        """What the file's values stand for, float32."""
        return stored.float() * self.scale if self.scale != 1 else stored.float()

    def step(self, values: Tensor) -> Tensor:
        """The distance between neighbouring values of the file around some float32 values."""
        bits, least = BITS[self.kind]
        exponent = torch.frexp(values / self.scale)[1] - 1
        exponent = exponent.masked_fill(values == 0, least).clamp(min=least)
        return self.scale * torch.ldexp(torch.ones_like(values), exponent - bits)


@dataclass(frozen=True)
class Piece:
    """Some rows of a changed parameter: before and after in float32, and as the new file has them."""

    name: str
    start: int
    before: Tensor
    after: Tensor
    stored: Tensor
    grid: Grid


Watch = Callable[[Piece], object]


def rewrite(
    checkpoint: Checkpoint,
    out: Path,
    metadata: Mapping[str, str],
    precision: Precision,
    change_of: Callable[[str], Change | None],
    watch: Watch | None = None,
) -> Iterator[tuple[int, str]]:
    """Write a checkpoint with changed parameters to another file, which appears when it is whole.

    change_of  asked once for every parameter; None leaves it as it is
    watch      told of every piece of a parameter that was changed
    ->         number of parameters done and the next one's name, before each; to stop is to stop iterating
    Raises AtelierError for a full disk, and for values that are no numbers or too large for the precision.
    """
    plan = Plan(checkpoint, precision)
    with writing(out, plan.tensors, plan.kept_metadata(metadata)) as writer:
        for key in plan.copied:
            for at, raw in checkpoint.file.pieces(key):
                writer.put_bytes(key, raw, at)
        for key in plan.marks:
            writer.put(key, torch.zeros(2, dtype=DTYPES[FP8]))
        work = _Rewriting(checkpoint, plan, writer, watch)
        for done, name in enumerate(checkpoint.parts):
            yield done, name
            work.put(name, change_of(name))


class Plan:
    """Which tensors a rewritten checkpoint has, of which kind, and where their scales go."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision):
        self.checkpoint, self.precision = checkpoint, precision
        self.tensors: dict[str, Planned] = {}
        self.scales: dict[str, str] = {}  # of each fp8 tensor with a scale, its scale's key
        self.marks: list[str] = []
        parts = {p.key: name for name, rows in checkpoint.parts.items() for p in rows}
        stored = checkpoint.file.tensors
        for key, name in parts.items():
            kind = self._kind(name, key)
            self.tensors[key] = Planned(kind, stored[key].shape)
            scale = checkpoint.scale_key(key)
            if precision == "fp8" and kind == FP8:
                scale = key.removesuffix(".weight") + SCALES[0]
                self.scales[key], self.tensors[scale] = scale, Planned("F32", ())
            elif precision == "same" and scale:
                self.scales[key], self.tensors[scale] = scale, Planned(stored[scale].kind, stored[scale].shape)
        beside = checkpoint.beside if precision == "same" else set()
        self.copied = [k for k in stored if k not in parts and k not in checkpoint.beside]
        self.copied += sorted(beside - set(self.scales.values()))
        self.tensors |= {k: Planned(stored[k].kind, stored[k].shape) for k in self.copied}
        if precision == "fp8":
            self.marks = [checkpoint.prefix + MARK]
            self.tensors[self.marks[0]] = Planned(FP8, (2,))  # two values: ComfyUI multiplies in full precision

    def _kind(self, name: str, key: str) -> str:
        stored = self.checkpoint.file.tensors[key]
        if stored.kind not in FLOATS and not stored.packed:
            return stored.kind
        if self.precision in KINDS:
            return KINDS[self.precision]
        if self.precision == "fp8" and "_blocks." in name and len(stored.shape) == 2:
            return FP8
        loses_scale = self.precision == "fp8" and self.checkpoint.scale_key(key)
        return "BF16" if stored.packed or loses_scale else stored.kind

    def kept_metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """A header without the list of scales that are no longer there."""
        return {k: v for k, v in metadata.items() if k != LISTED or self.precision == "same"}

    def untouched(self, key: str) -> bool:
        """Whether a tensor that nothing changes is the same bytes in the new file."""
        stored = self.checkpoint.file.tensors[key]
        scaled = self.checkpoint.scale_key(key)
        return self.tensors[key].kind == stored.kind and (
            self.precision == "same" or not (scaled or key in self.scales)
        )


@dataclass(frozen=True)
class _Rewriting:
    """One rewriting: where values come from, what becomes of them, where they go."""

    checkpoint: Checkpoint
    plan: Plan
    writer: TensorWriter
    watch: Watch | None

    def put(self, name: str, change: Change | None) -> None:
        """Write one parameter, tensor by tensor of the file."""
        for key, group in groupby(self.checkpoint.parts[name], lambda part: part.key):
            parts = list(group)
            if change is None and self.plan.untouched(key):
                self._copy(key)
                continue
            grid = Grid(self.plan.tensors[key].kind, self._scale(name, key, parts, change))
            for part, start, stop in self._spans(name, parts):
                before, after = self._values(name, part, (start, stop), change)
                stored = grid.rounded(after)
                if grid.kind == "F16":
                    refuse_infinite(stored, name, "fp16 holds no number above 65504")
                self.writer.put(
                    key, stored.reshape(-1, *self.plan.tensors[key].shape[1:]), part.at + start - part.start
                )
                if change and self.watch:
                    self.watch(Piece(name, start, before, after, stored, grid))

    def _copy(self, key: str) -> None:
        for tensor in filter(None, (key, self.plan.scales.get(key))):
            for at, raw in self.checkpoint.file.pieces(tensor):
                self.writer.put_bytes(tensor, raw, at)

    def _spans(self, name: str, parts: list[Rows]) -> Iterator[tuple[Rows, int, int]]:
        width = self.checkpoint.shapes[name][1:]
        return ((part, *span) for part in parts for span in spans((part.count, *width), part.start))

    def _values(self, name: str, part: Rows, span: tuple[int, int], change: Change | None) -> tuple[Tensor, Tensor]:
        before = self.checkpoint.part_rows(part, *span)
        after = change(before, span[0]) if change else before
        refuse_infinite(after, name, "the file or the LoRA is damaged")
        return before, after

    def _scale(self, name: str, key: str, parts: list[Rows], change: Change | None) -> float:
        """The scale with which an fp8 tensor uses its whole range, written where the plan has one; else 1."""
        where = self.plan.scales.get(key)
        if where is None:
            return 1.0
        most = max(
            self._values(name, part, (start, stop), change)[1].abs().max().item()
            for part, start, stop in self._spans(name, parts)
        )
        planned = self.plan.tensors[where]
        scale = torch.tensor(max(most / torch.finfo(DTYPES[self.plan.tensors[key].kind]).max, LEAST))
        scale = scale.to(DTYPES[planned.kind])
        self.writer.put(where, scale.expand(planned.shape))
        return scale.item()


def refuse_infinite(values: Tensor, name: str, reason: str) -> None:
    """Raise AtelierError unless all values are finite numbers."""
    if not math.isfinite(values.sum(dtype=torch.float32).item()):  # one pass where isfinite takes five
        raise AtelierError(f"{name} would have values that are no finite numbers: {reason}. Nothing was written.")

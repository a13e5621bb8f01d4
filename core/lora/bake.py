"""LoRAs of any kind put into a checkpoint file for good, and taken out again.

The file is read and written some rows at a time, so memory does not grow with it. Its header records what was put in,
by the LoRA's identity, and that is what a LoRA is taken out by. Taking out can be exact only up to rounding: what that
leaves is measured where the base is at hand, and else expected from how far
the file's values are apart.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..flux.checkpoint import Checkpoint, parameter_name, read
from ..flux.rewrite import Change, Piece, Precision, rewrite
from ..options import Options
from ..tensor_stream import open_tensors
from .blocks import BlockWeights, parse_weights
from .extract import refuse_misfit
from .identity import survey
from .kinds import Dense, Layer, Rotation, delta_over
from .provenance import is_file_fact
from .record import Lora
from .tiles import change_over, rows_of

BAKED = "flux_atelier.baked"
LEAN = ("DoRA", "OFT", "BOFT")  # kinds whose change depends on the weight they change


class BakeOptions(Options):
    """How a LoRA goes into a checkpoint."""

    strength: float = Field(default=1.0, ge=-20, le=20, description="Strength of the LoRA, as in Load LoRA; -20 to 20.")
    block_weights: str = Field(
        default="", description="Weights by block, such as double.0-18 = 0.5, single.7 = 0; nothing means 1 everywhere."
    )
    dtype: Precision = Field(
        default="same",
        description="Precision of the file: same as before (GGUF becomes bf16), bf16, fp16, fp32, or fp8 with scales "
        "for the blocks.",
    )


class UnbakeOptions(Options):
    """How a LoRA comes out of a checkpoint; strength and block weights count only where the header does not."""

    anyway: bool = Field(
        default=False, description="Take it out with the strength and block weights given here, whatever the file says."
    )
    strength: float = Field(default=1.0, ge=-20, le=20, description="Strength it was put in with; only with anyway.")
    block_weights: str = Field(default="", description="Block weights it was put in with; only with anyway.")


@dataclass(frozen=True)
class Result:
    """What became of a checkpoint.

    layers, vectors  weights, and biases and norms, that were changed
    left_out         layers of the LoRA that the checkpoint lacks, such as those of text encoders
    error            baking: share of the LoRA's change that rounding took, as a length; taking out: how far the changed
                     weights are from the base, of their length
    exact            share of the changed values that came back exactly; None for baking, or where nothing tells it
    measured         whether the error was measured beside the base rather than expected
    was              precision that the LoRA had been put in with
    """

    path: Path
    layers: int
    vectors: int
    left_out: tuple[str, ...]
    error: float
    exact: float | None = None
    measured: bool = True
    taken_out: bool = False
    was: str = "same"

    def report(self) -> str:
        """What was done, in lines."""
        lines = [str(self.path), f"{self.layers} layers and {self.vectors} biases and norms changed"]
        if self.left_out:
            lines.append(f"{len(self.left_out)} layers are not in the checkpoint, such as {self.left_out[0]}")
        if not self.taken_out:
            return "\n".join([*lines, f"rounding to the file's precision is {self.error:.2%} of the LoRA's change"])
        how = "beside the base" if self.measured else "expected, without the base to compare"
        told = "" if self.exact is None else f"{self.exact:.2%} of the changed values are the base's, "
        lines.append(f"{told}error {self.error:.3g} ({how})")
        if self.was != "same":
            lines.append(f"the LoRA was put in with a change to {self.was}; what that rounded off is gone")
        return "\n".join(lines)


@dataclass(frozen=True)
class Step:
    """How far the writing is; the last step has its result, and then the file is there."""

    done: int
    total: int
    name: str
    result: Result | None = None


def bake(source: Path, out: Path, lora: Lora, name: str = "LoRA", options: BakeOptions | None = None) -> Iterator[Step]:
    """Put a LoRA of any kind into a checkpoint, a step a parameter.

    source  safetensors (bf16, fp16, fp32, fp8, fp8 with scales) or GGUF, in the original or diffusers' layout
    out     the file to write; to stop iterating leaves nothing of it
    name    of the LoRA, for the header
    Raises AtelierError if it does not fit, or the disk is full.
    """
    options = options or BakeOptions()
    weights = parse_weights(options.block_weights, lora.base)
    _refuse_same(source, out)
    entry = {
        "name": name, "identity": survey(lora).identity, "strength": options.strength,
        "block_weights": options.block_weights, "dtype": options.dtype,
    }  # fmt: skip
    with open_tensors(source) as opened:
        checkpoint = Checkpoint(opened)
        changes = Changes(checkpoint, lora, options.strength, weights)
        figures = _Lost()
        header = _header(opened.metadata, [*baked(opened.metadata), entry])
        total = len(checkpoint.parts)
        for done, name in rewrite(checkpoint, out, header, options.dtype, changes.of, figures.watch):
            yield Step(done, total, name)
        result = Result(out, changes.layers, changes.vectors, changes.left_out, figures.share())
        yield Step(total, total, "", result)


def unbake(
    source: Path, out: Path, lora: Lora, base: Path | None = None, options: UnbakeOptions | None = None
) -> Iterator[Step]:
    """Take a LoRA out of a checkpoint that it was put into, a step a parameter, in the file's own precision.

    source  a checkpoint that `bake` wrote
    base    the checkpoint from before, to measure what rounding leaves; None estimates it
    Raises AtelierError if the header does not name this LoRA, or its change depends on the base.
    """
    options = options or UnbakeOptions()
    _refuse_same(source, out)
    facts = survey(lora)
    odd = next((kind for kind in facts.kinds if kind in LEAN), None)
    if odd:
        raise AtelierError(f"The LoRA is a {odd}, which cannot be taken out of what it changed. Use the base file.")
    with ExitStack() as stack:
        opened = stack.enter_context(open_tensors(source))
        checkpoint = Checkpoint(opened)
        entries = baked(opened.metadata)
        at = _recorded(entries, facts.identity, options, checkpoint.name)
        entry = entries.pop(at) if at is not None else {}
        recipe = options.model_dump() if options.anyway else entry
        weights = parse_weights(recipe["block_weights"], lora.base)
        changes = Changes(checkpoint, lora, -recipe["strength"], weights)
        was = entry.get("dtype", "same")
        figures = _Left(Checkpoint(stack.enter_context(open_tensors(base))) if base else None, was == "same")
        header = _header(opened.metadata, entries)
        total = len(checkpoint.parts)
        for done, name in rewrite(checkpoint, out, header, "same", changes.of, figures.watch):
            yield Step(done, total, name)
        result = Result(
            out, changes.layers, changes.vectors, changes.left_out, figures.error(), figures.exact(), base is not None,
            True, was,
        )  # fmt: skip
        yield Step(total, total, "", result)


def baked(metadata: Mapping[str, str]) -> list[dict]:
    """What a checkpoint's header says was put into it, in that order."""
    return json.loads(metadata.get(BAKED, "[]"))


def _recorded(entries: Sequence[dict], identity: str, options: UnbakeOptions, name: str) -> int | None:
    """The place of the record of a LoRA, the last one; None where it has none and is to come out anyway."""
    at = next((i for i in reversed(range(len(entries))) if entries[i]["identity"] == identity), None)
    if at is None and not options.anyway:
        known = ", ".join(f"{e['name']} at {e['strength']:g}" for e in entries)
        found = f"{name} has {known} in it, not this LoRA" if known else f"{name} does not say that a LoRA is in it"
        raise AtelierError(f"{found}. Choose the LoRA that was put in, or set anyway.")
    return at


def _header(metadata: Mapping[str, str], entries: Sequence[dict]) -> dict[str, str]:
    kept = {k: v for k, v in metadata.items() if k != BAKED and not is_file_fact(k)}
    return kept | ({BAKED: json.dumps(list(entries))} if entries else {})


def _refuse_same(source: Path, out: Path) -> None:
    if out.exists() and source.exists() and out.samefile(source):
        raise AtelierError(f"{out} is the checkpoint itself. Give the result another name.")


class Changes:
    """A LoRA's changes by the checkpoint's parameters, each layer asked for once."""

    def __init__(self, checkpoint: Checkpoint, lora: Lora, strength: float, weights: BlockWeights):
        self._checkpoint, self._lora = checkpoint, lora
        factors = {name: strength * weights.of(name) for name in (*lora.modules, *lora.vectors)}
        self._factors = {name: factor for name, factor in factors.items() if factor}
        self._vectors = {parameter_name(name): name for name in lora.vectors if name in self._factors}
        layers = [m for m in lora.modules if m in self._factors]
        here = [m for m in layers if f"{m}.weight" in checkpoint.parts]
        vectors = [name for name in self._vectors if name in checkpoint.parts]
        self.layers, self.vectors = len(here), len(vectors)
        self.left_out = tuple(sorted({*layers, *self._vectors} - {*here, *vectors}))
        if not here and not vectors:
            found = f"such as {self.left_out[0]}" if self.left_out else "with a strength above 0"
            raise AtelierError(
                f"{checkpoint.name} has none of the LoRA's layers {found}. Choose the model that it was made for."
            )

    def of(self, name: str) -> Change | None:
        """What happens to a parameter, or None."""
        if name in self._vectors:
            return self._vector(name, self._vectors[name])
        module = name.removesuffix(".weight")
        if module == name or module not in self._lora.modules or module not in self._factors:
            return None
        return self._layer(name, module)

    def _layer(self, name: str, module: str) -> Change:
        layer: Layer = self._lora.modules[module]
        shape, factor = self._checkpoint.shapes[name], self._factors[module]
        refuse_misfit(layer, module, shape, self._checkpoint.name)
        if isinstance(layer, Rotation):
            layer = Dense(change_over(layer, read(self._checkpoint, name).flatten(1)))

        def change(rows: Tensor, start: int) -> Tensor:
            delta = delta_over(rows_of(layer, start, start + len(rows)), rows.flatten(1))
            return rows + factor * delta.reshape(rows.shape)

        return change

    def _vector(self, name: str, key: str) -> Change:
        value, factor = self._lora.vectors[key].float(), self._factors[key]
        if tuple(value.shape) != self._checkpoint.shapes[name]:
            raise AtelierError(
                f"{name} has {self._checkpoint.shapes[name]} values in {self._checkpoint.name}, and {list(value.shape)} "
                "in the LoRA. Choose the base model that the LoRA was made for."
            )
        return lambda rows, start: rows + factor * value[start : start + len(rows)]


def _energy(values: Tensor) -> float:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).item()


@dataclass
class _Lost:
    """What rounding takes of a LoRA's change, summed over pieces."""

    lost: float = 0.0
    change: float = 0.0

    def watch(self, piece: Piece) -> None:
        self.lost += _energy(piece.grid.value(piece.stored) - piece.after)
        self.change += _energy(piece.after - piece.before)

    def share(self) -> float:
        return (self.lost / self.change) ** 0.5 if self.change else 0.0


@dataclass
class _Left:
    """What taking a LoRA out leaves, summed over pieces: measured beside the base, or expected without.

    on_grid  whether the base's values were values of the file's own kind: then the first rounding is undone by the
             second, unless the change had moved a weight to where the file's values are further apart
    """

    base: Checkpoint | None
    on_grid: bool
    left: float = 0.0
    whole: float = 0.0
    same: float = 0.0
    values: int = 0

    def watch(self, piece: Piece) -> None:
        ours = piece.grid.value(piece.stored)
        left, same = self._expected(piece, ours) if self.base is None else self._measured(self.base, piece, ours)
        self.left, self.whole = self.left + left, self.whole + _energy(ours)
        self.same, self.values = self.same + same, self.values + ours.numel()

    def _measured(self, base: Checkpoint, piece: Piece, ours: Tensor) -> tuple[float, float]:
        if base.shapes.get(piece.name) != self._shape(piece, base):
            raise AtelierError(f"{base.name} has no such {piece.name}. Choose the base that the LoRA was put into.")
        error = base.rows(piece.name, piece.start, piece.start + len(ours)) - ours
        return _energy(error), (error == 0).sum().item()

    @staticmethod
    def _shape(piece: Piece, base: Checkpoint) -> tuple[int, ...] | None:
        shape = base.shapes.get(piece.name)
        fits = shape and shape[1:] == piece.after.shape[1:] and piece.start + len(piece.after) <= shape[0]
        return shape if fits else ()

    def _expected(self, piece: Piece, ours: Tensor) -> tuple[float, float]:
        """Squared error and number of exact values to expect of roundings that are even over a step."""
        before, after = piece.grid.step(piece.before), piece.grid.step(ours)
        if self.on_grid and piece.grid.scale == 1:
            apart = before > after
            return (_energy(before[apart]) + _energy(after[apart])) / 12, torch.where(
                apart, after / before, 1.0
            ).sum().item()
        return (_energy(before) + _energy(after)) / 12, math.nan

    def error(self) -> float:
        return (self.left / self.whole) ** 0.5 if self.whole else 0.0

    def exact(self) -> float | None:
        return None if math.isnan(self.same) else self.same / max(1, self.values)

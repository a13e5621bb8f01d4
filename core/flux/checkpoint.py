"""A transformer's file under the original parameter names, whatever its layout and precision.

A parameter is some rows of one or of several tensors of the file: diffusers splits the fused projections and exchanges
the halves of the last modulation. Values come as float32, with the scales of fp8 files applied.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import AtelierError
from ..tensor_stream import TensorFile
from . import layout

VALUES = 1 << 21  # of a parameter at a time: 8 MiB in float32
SCALES = (".scale_weight", ".weight_scale")
BESIDE = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"  # ComfyUI's older sign that fp8 weights have scales
LISTED = "_quantization_metadata"  # in a header, in place of .comfy_quant
FP8 = ("float8_e4m3fn", "float8_e5m2")


class Weights(Protocol):
    """Named parameters of a model, read some rows at a time."""

    name: str

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes by original parameter name."""
        ...

    @property
    def precision(self) -> str:
        """How most of the values are kept, as safetensors and GGUF call it."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a parameter in float32."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows start..start + count of a parameter: those of the file's tensor `key` from `at` on."""

    key: str
    start: int
    count: int
    at: int = 0


class Checkpoint:
    """The parameters of a Flux transformer in an open file."""

    def __init__(self, file: TensorFile):
        """Sort a file's tensors.

        Raises AtelierError if it is no Flux transformer, or is quantised in a way that only ComfyUI reads.
        """
        self.file, self.name = file, file.path.name
        self.prefix = next((p for p in layout.PREFIXES if any(k.startswith(p) for k in file.tensors)), "")
        keys = {k.removeprefix(self.prefix): k for k in file.tensors if k.startswith(self.prefix)}
        _refuse_quantised(file, keys)
        self.beside = {full for k, full in keys.items() if k == MARK or k.endswith(BESIDE)}
        known = {
            k: torch.empty(file.tensors[full].shape, device="meta")
            for k, full in keys.items()
            if full not in self.beside
        }
        if "x_embedder.weight" in known:
            self.parts = _from_diffusers(known, keys)
        else:
            if "double_stream_modulation_img.lin.weight" not in known:  # Flux.2 has the same names, and no vector_in
                layout.refuse_other_models(known)
            self.parts = {
                parameter_name(k): (Rows(keys[k], 0, v.shape[0] if v.dim() else 1),) for k, v in known.items()
            }
        self.shapes = {
            name: (sum(p.count for p in parts), *file.tensors[parts[0].key].shape[1:])
            for name, parts in self.parts.items()
        }

    def scale_key(self, key: str) -> str | None:
        """The key of an fp8 tensor's scale, or None."""
        stem = key.removesuffix(".weight")
        return next((stem + s for s in SCALES if stem + s in self.file.tensors), None) if stem != key else None

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a parameter in float32."""
        made = [
            self.part_rows(part, max(start, part.start), min(stop, part.start + part.count))
            for part in self.parts[name]
            if part.start < stop and start < part.start + part.count
        ]
        return made[0] if len(made) == 1 else torch.cat(made)

    def part_rows(self, part: Rows, start: int, stop: int) -> Tensor:
        """Rows start..stop of a parameter, all of which lie in one part, in float32."""
        first, last = part.at + start - part.start, part.at + stop - part.start
        values = self.file.rows(part.key, first, last).to(torch.float32)
        key = self.scale_key(part.key)
        if key is None:
            return values
        scale = self.file.rows(key).float().flatten()
        if len(scale) > 1:
            scale = scale[first:last].reshape(-1, *[1] * (values.dim() - 1))
        return values * scale

    @property
    def precision(self) -> str:
        """The kind of the largest tensor, which is most of the file's."""
        stored = (self.file.tensors[part.key] for parts in self.parts.values() for part in parts)
        return max(stored, key=lambda tensor: math.prod(tensor.shape)).kind


def parameter_name(key: str) -> str:
    """The name of a parameter as LoRAs have it; the original files call the norms' weights `scale`."""
    return key.replace("_norm.scale", "_norm.weight")


def read(weights: Weights, name: str) -> Tensor:
    """A whole parameter in float32."""
    shape = weights.shapes[name]
    whole = torch.empty(shape)
    for start, stop in spans(shape):
        whole[start:stop] = weights.rows(name, start, stop)
    return whole


def spans(shape: tuple[int, ...], first: int = 0) -> list[tuple[int, int]]:
    """First and last rows of the pieces in which a tensor of a shape is worked on, counted from `first`.

    They are of even size: products of a handful of rows are rounded otherwise than those of many.
    """
    count = shape[0] if shape else 1
    most = max(1, VALUES * count // max(1, torch.Size(shape).numel()))
    step = max(1, -(-count // max(1, -(-count // most))))
    return [(first + a, first + min(a + step, count)) for a in range(0, count, step)]


def _from_diffusers(known: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, tuple[Rows, ...]]:
    parts = {}
    for piece in layout.pieces(layout.shape_of_diffusers(known)):
        for kind in ("weight", "bias"):
            names = [f"{d}.{kind}" for d in piece.diffusers]
            if names[0] not in known:
                continue
            missing = next((n for n in names if n not in known), None)
            if missing:
                raise AtelierError(f"The model has no {missing}. Download it again if it was cut short.")
            parts[f"{piece.original}.{kind}"] = _rows(names, known, keys, piece.swapped)
    return parts


def _rows(names: list[str], known: Mapping[str, Tensor], keys: Mapping[str, str], swapped: bool) -> tuple[Rows, ...]:
    if swapped:
        half = known[names[0]].shape[0] // 2
        return Rows(keys[names[0]], 0, half, half), Rows(keys[names[0]], half, half, 0)
    made, start = [], 0
    for name in names:
        made.append(Rows(keys[name], start, known[name].shape[0]))
        start += known[name].shape[0]
    return tuple(made)


def _refuse_quantised(file: TensorFile, keys: Mapping[str, str]) -> None:
    """Raise AtelierError for ComfyUI's formats beyond fp8 with a scale."""
    formats = {str(v.get("format")) for v in json.loads(file.metadata.get(LISTED, "{}")).get("layers", {}).values()}
    for key, full in keys.items():
        if key.endswith(".comfy_quant"):
            formats.add(str(json.loads(bytes(file.rows(full).tolist())).get("format")))
    odd = next((f for f in sorted(formats) if f not in FP8), None)
    if odd:
        raise AtelierError(
            f"{file.path.name} is quantised in a way that only ComfyUI reads ({odd}). Choose its bf16 or fp8 file."
        )

"""Checkpoint files a tensor, or a few of its rows, at a time: safetensors and GGUF in, safetensors out.

Files are read with plain reads, not mapped: of a mapped file every page that was looked at counts as memory. What is
written begins with the whole header, so each tensor's place is known and rows may come in any order; the file takes its
name when all of them are there.
"""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import AtelierError
from .files import check_tensors, told_if_full

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
PIECE = 1 << 24  # bytes of a plain copy at a time


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: safetensors' or GGUF's name of its kind, its shape, and its bytes' place."""

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def packed(self) -> bool:
        """Whether its values are in GGUF's blocks."""
        return self.kind not in DTYPES

    @property
    def row_size(self) -> int:
        """Bytes of a row; a scalar is one row."""
        return self.size // max(1, self.shape[0]) if self.shape else self.size


@dataclass(frozen=True)
class TensorFile:
    """An open checkpoint file: what lies in it, and its header's metadata."""

    path: Path
    source: BinaryIO
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor in the dtype of the file; GGUF's blocks as float32.

        Raises AtelierError if the file ends before them, or has a kind of values nobody here can read.
        """
        stored = self.tensors[name]
        stop = (stored.shape[0] if stored.shape else 1) if stop is None else stop
        shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
        raw = torch.empty((stop - start) * stored.row_size, dtype=torch.uint8)
        self._fill(raw, stored.start + start * stored.row_size)
        if stored.packed:
            return _unpacked(raw, stored.kind, shape, self.path)
        return raw.view(DTYPES[stored.kind]).reshape(shape)

    def pieces(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor's bytes as they are, with the place of each piece among them."""
        stored = self.tensors[name]
        for start in range(0, stored.size, PIECE):
            raw = torch.empty(min(PIECE, stored.size - start), dtype=torch.uint8)
            self._fill(raw, stored.start + start)
            yield start, raw

    def _fill(self, raw: Tensor, start: int) -> None:
        self.source.seek(start)
        if self.source.readinto(memoryview(raw.numpy())) != len(raw):  # type: ignore[attr-defined]
            raise AtelierError(f"{self.path.name} is cut short. Download it again.")


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors or GGUF file for reading tensor by tensor.

    Raises AtelierError if it is missing, cut short or neither, or the package for GGUF files is missing.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        tensors, metadata = _gguf_header(path), {}
    else:
        check_tensors(path)
        tensors, metadata = _safetensors_header(path)
    with open(path, "rb") as source:
        yield TensorFile(path, source, tensors, metadata)


def _safetensors_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    with open(path, "rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start)
    odd = next((s.kind for s in tensors.values() if s.packed), None)
    if odd:
        raise AtelierError(f"{path.name} has tensors of the kind {odd}. Choose a file in bf16, fp16, fp32 or fp8.")
    return tensors, metadata


def _gguf_header(path: Path) -> dict[str, Stored]:
    try:
        import gguf
    except ImportError as error:
        raise AtelierError(f"GGUF files need the package gguf ({error}). Run: pip install gguf") from None
    if not path.is_file():
        raise AtelierError(f"There is no file {path}. Check the name and the folder.")
    try:
        listed = gguf.GGUFReader(path).tensors
    except (ValueError, OSError, IndexError) as error:
        raise AtelierError(f"{path.name} is not a whole GGUF file ({error}). Download it again.") from None
    return {
        t.name: Stored(t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), int(t.data_offset), int(t.n_bytes))
        for t in listed
    }


def _unpacked(raw: Tensor, kind: str, shape: tuple[int, ...], path: Path) -> Tensor:
    import gguf

    try:
        blocks = raw.reshape(*shape[:-1], -1).numpy()
        return torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])).reshape(shape)
    except (NotImplementedError, KeyError):
        raise AtelierError(f"{path.name} has tensors of the kind {kind}, which cannot be read. Use another.") from None


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its kind, a key of DTYPES, and its shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * DTYPES[self.kind].itemsize


class TensorWriter:
    """A file being written: rows go to their tensor's place, in any order, each once."""

    def __init__(self, sink: BinaryIO, plan: Mapping[str, Planned], places: Mapping[str, int]):
        self._sink, self._plan, self._places = sink, plan, places
        self._left = {name: planned.size for name, planned in plan.items()}

    def put(self, name: str, rows: Tensor, at: int = 0) -> None:
        """Write rows of a tensor, in the dtype that was planned for it, from row `at` on."""
        planned = self._plan[name]
        if rows.dtype != DTYPES[planned.kind]:
            raise ValueError(f"{name} was planned as {planned.kind}, not {rows.dtype}")
        row = planned.size // max(1, planned.shape[0]) if planned.shape else planned.size
        self.put_bytes(name, rows.detach().contiguous().reshape(-1).view(torch.uint8), at * row)

    def put_bytes(self, name: str, raw: Tensor, at: int = 0) -> None:
        """Write some of a tensor's bytes, from byte `at` on."""
        self._sink.seek(self._places[name] + at)
        self._sink.write(memoryview(raw.numpy()))
        self._left[name] -= len(raw)

    def check(self) -> None:
        """Raise ValueError unless every tensor was written."""
        odd = next((name for name, left in self._left.items() if left), None)
        if odd:
            raise ValueError(f"{odd} was written with {self._left[odd]} bytes missing")


@contextmanager
def writing(path: Path, plan: Mapping[str, Planned], metadata: Mapping[str, str]) -> Iterator[TensorWriter]:
    """Write a safetensors file tensor by tensor; it takes its name when the block ends well.

    path      of the file; its folder is made
    plan      every tensor that will be written
    metadata  of the header
    Raises AtelierError if the disk is full, before anything is written where that is known; whatever ends the block
    early, nothing stays behind.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    header, places, total = _header(plan, metadata)
    try:
        with told_if_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < total:
                raise OSError(errno.ENOSPC, "no room for the whole file")
            with open(part, "wb") as sink:
                sink.write(header)
                sink.truncate(total)
                writer = TensorWriter(sink, plan, places)
                yield writer
                writer.check()
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _header(plan: Mapping[str, Planned], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors header, each tensor's place in the file, and the file's size.

    Wide dtypes come first, so that each tensor begins at a multiple of its values' size, which readers rely on.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"} | dict(metadata)}
    offsets, at = {}, 0
    for name, planned in sorted(plan.items(), key=lambda item: -DTYPES[item[1].kind].itemsize):
        entries[name] = {"dtype": planned.kind, "shape": planned.shape, "data_offsets": (at, at + planned.size)}
        offsets[name] = at
        at += planned.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + offset for name, offset in offsets.items()}, start + at

"""Writing without loss: every file appears whole under its name, or not at all."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import AtelierError

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and give it its name.

    write  called with the temporary path
    Raises what `write` raises, AtelierError if the disk is full; then nothing stays behind.
    """
    path = Path(path)
    if path.is_dir():
        raise AtelierError(f"{path} is a folder. Give the name of a file to write.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with told_if_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
            usual = part.stat().st_mode  # what the umask gives; safetensors' own temporary files are closed to others
            write(part)
            if part.stat().st_mode != usual:
                part.chmod(stat.S_IMODE(usual))
            with open(part, "rb+") as opened:
                os.fsync(opened.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def refuse_overwriting(out: Path, sources: Iterable[Path]) -> None:
    """Raise AtelierError if a file to write is one of those that are read."""
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise AtelierError(f"{out} is one of the files that are read. Write to another name.")


@contextmanager
def told_if_full(path: Path):
    """Raise AtelierError where the disk or a quota has no room for what a block writes to `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        known = getattr(error, "errno", None) in FULL or any(f"os error {number})" in str(error) for number in FULL)
        if not known:
            raise
        raise AtelierError(
            f"{path} could not be written, because the disk is full. Make room there; what was there before is untouched."
        ) from None


def remove_unfinished(path: Path) -> None:
    """Remove what a process that was killed while writing a file has left beside it."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink(missing_ok=True)


def append_line(path: Path, text: str) -> None:
    """Append a line to a file, on a line of its own even where the last one was cut short."""
    with told_if_full(path), open(path, "ab+") as opened:
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, end - 1))
        cut = opened.read(1) not in (b"", b"\n")
        opened.write(("\n" * cut + text + "\n").encode())


def write_text(path: Path, text: str) -> Path:
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> Path:
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file; the tensors are made contiguous on the CPU."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    return write_whole(path, lambda part: save_file(ready, part, metadata={"format": "pt"} | dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, and the metadata of its header.

    Raises AtelierError if the file is missing, cut short, or no safetensors file; pickles are never opened.
    """
    with _opened(Path(path)) as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}, dict(opened.metadata() or {})


def check_tensors(path: Path) -> None:
    """Look at a safetensors file's header and length only; raises as read_tensors does."""
    with _opened(Path(path)):
        pass


def tensor_sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file's tensors, from its header; raises as read_tensors does."""
    with _opened(Path(path)) as opened:
        return {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}


@contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except FileNotFoundError:
        raise AtelierError(f"There is no file {path}. Check the name and the folder.") from None
    except (SafetensorError, OSError) as error:
        if path.is_dir():
            raise AtelierError(f"{path} is a folder, not a file. Choose a safetensors file in it.") from None
        start = path.open("rb").read(60) if path.is_file() else b""
        if start.startswith(b"version https://git-lfs"):
            raise AtelierError(
                f"{path.name} is a Git LFS pointer, not the file. Download it with git lfs pull."
            ) from None
        raise AtelierError(
            f"{path.name} is not a whole safetensors file ({error}). Download it again, or convert it to safetensors."
        ) from None


def digest(path: Path, size: int = 16) -> str:
    """BLAKE2b of a file's bytes as hex, `size` bytes long."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=size)).hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor], size: int = 16) -> str:
    """BLAKE2b of tensors' names, shapes and bytes as hex."""
    total = hashlib.blake2b(digest_size=size)
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def digest_of(*parts: object, size: int = 16) -> str:
    """BLAKE2b of some plain values as hex: a key for what depends on just these."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=size).hexdigest()

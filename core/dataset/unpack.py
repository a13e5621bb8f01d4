"""Unpack archives, parquet tables and video files into a cache folder, so that a dataset is always files below a root.

A cache folder appears whole or not at all, once for each state of what it came from. Nothing is written outside it.
"""

import gzip
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from ..errors import AtelierError
from ..files import digest_of, told_if_full, write_json
from ..frames.pixels import rgb_of
from ..frames.video import probe, upright
from . import folder

ENDINGS = folder.ENDINGS
TABLES = ("metadata.jsonl", "metadata.csv")
LARGEST_MEMBER = 1 << 30  # bytes of one file in an archive
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)
DAMAGED += (RuntimeError, NotImplementedError, FileExistsError, NotADirectoryError, IsADirectoryError)
# The order of the labels of huggan/wikiart.
STYLES = [
    "Abstract_Expressionism",
    "Action_painting",
    "Analytical_Cubism",
    "Art_Nouveau",
    "Baroque",
    "Color_Field_Painting",
    "Contemporary_Realism",
    "Cubism",
    "Early_Renaissance",
    "Expressionism",
    "Fauvism",
    "High_Renaissance",
    "Impressionism",
    "Mannerism_Late_Renaissance",
    "Minimalism",
    "Naive_Art_Primitivism",
    "New_Realism",
    "Northern_Renaissance",
    "Pointillism",
    "Pop_Art",
    "Post_Impressionism",
    "Realism",
    "Rococo",
    "Romanticism",
    "Symbolism",
    "Synthetic_Cubism",
    "Ukiyo_e",
]


@dataclass(frozen=True)
class Take:
    """Which part of a source to take."""

    style: str = ""  # of WikiArt, such as Impressionism; empty for all
    artist: str = ""  # of WikiArt, such as claude-monet; empty for all
    seconds: float = 1.0  # between frames of a video
    scene: float = 0.0  # 0..1, mean change of brightness that starts a scene, about 0.1; 0 takes frames by time


# --- archives ---


def unpack_archive(file: Path, cache: Path) -> Path:
    """Unpack pictures, captions and tables of a zip or tar into a cache folder, once for each state of the file.

    -> the folder
    Raises AtelierError for a member that leads out of the folder, is too large, or cannot be read.
    """
    reader = _zip_members if file.name.lower().endswith(".zip") else _tar_members

    def fill(target: Path) -> None:
        try:
            for name, size, opened in reader(file):
                _unpack_member(target, file, name, size, opened)
        except DAMAGED as error:
            raise AtelierError(f"{file.name} cannot be unpacked ({error}). Pack it anew, without a password.") from None

    return _unpacked([file], cache, [], fill)


def _zip_members(file: Path) -> Iterator[tuple[str, int, Callable]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16):
                yield member.filename, member.file_size, lambda m=member: archive.open(m)


def _tar_members(file: Path) -> Iterator[tuple[str, int, Callable]]:
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isreg():
                yield member.name, member.size, lambda m=member: archive.extractfile(m)


def _unpack_member(target: Path, file: Path, name: str, size: int, opened: Callable) -> None:
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or PureWindowsPath(name).drive or ".." in plain.parts or "\0" in name:
        raise AtelierError(f"{file.name} has a member {name!r} that leads out of its folder. Do not use this archive.")
    if plain.suffix.lower() not in (*ENDINGS, *folder.SIDECARS) and plain.name not in TABLES:
        return
    if size > LARGEST_MEMBER:
        raise AtelierError(f"{name} in {file.name} has {size} bytes, more than a picture has. Remove it.")
    out = target.joinpath(*plain.parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with opened() as member, open(out, "wb") as written:
        shutil.copyfileobj(member, written)  # both readers stop at the size that the member declares


def _unpacked(files: list[Path], cache: Path, settings: list, fill: Callable[[Path], None]) -> Path:
    """The cache folder for these files and settings, filled if it is not there; it appears whole or not at all."""
    stamps = [[str(f), f.stat().st_mtime_ns, f.stat().st_size] for f in files]
    target = Path(cache) / f"{files[0].stem}-{digest_of(stamps, settings, size=6)}"
    if target.is_dir():
        return target
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with told_if_full(target):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            fill(part)
            write_json(part / ".source.json", {"files": stamps, "settings": settings})
            if not target.is_dir():  # another process may have been faster
                os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


# --- parquet and WikiArt ---


def unpack_parquet(files: list[Path], cache: Path, take: Take) -> Path:
    """Write pictures of parquet tables with an image column into a cache folder, the other columns as metadata.jsonl.

    take  style and artist by name; row groups without them are not read
    -> the folder
    Raises AtelierError if pyarrow is missing, there is no image column, or a style or artist is not known.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise AtelierError(f"{files[0].name} needs the package pyarrow. Install it with: pip install pyarrow") from None

    def fill(target: Path) -> None:
        lines, number = [], 0
        for file in files:
            for row in _parquet_rows(parquet, file, take):
                picture = row.pop("picture")
                name = f"{number:08d}{_ending(picture)}"
                (target / name).write_bytes(picture)
                lines.append(json.dumps({"file_name": name} | row, ensure_ascii=False, default=str))
                number += 1
        if not number:
            raise AtelierError(f"{files[0].name} has no picture of {take.style or take.artist or 'any kind'}.")
        (target / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")

    return _unpacked(files, cache, [take.style, take.artist], fill)


def _parquet_rows(parquet, file: Path, take: Take) -> Iterator[dict]:
    with parquet.ParquetFile(file) as table:
        schema = table.schema_arrow
        picture = next((f.name for f in schema if str(f.type).startswith("struct") and "bytes" in str(f.type)), None)
        if picture is None:
            raise AtelierError(f"{file.name} has no image column. Its columns are {', '.join(schema.names)}.")
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        labels = {name: f["names"] for name, f in told.items() if isinstance(f, dict) and "names" in f}
        if "style" in schema.names:
            labels.setdefault("style", STYLES)
        wanted = {k: _label(k, v, labels, schema.names) for k in ("style", "artist") if (v := getattr(take, k))}
        for group in range(table.num_row_groups):
            if wanted:
                keys = table.read_row_group(group, columns=list(wanted)).to_pylist()
                if wanted not in keys:
                    continue
            for batch in table.iter_batches(batch_size=32, row_groups=[group]):
                for row in batch.to_pylist():
                    held = row.pop(picture) or {}
                    if held.get("bytes") and all(row[k] == v for k, v in wanted.items()):
                        yield {k: _named(labels.get(k), v) for k, v in row.items()} | {"picture": held["bytes"]}


def _named(names: Iterable[str] | None, value: object) -> object:
    return list(names)[value] if names and isinstance(value, int) and 0 <= value < len(list(names)) else value


def _label(column: str, name: str, labels: Mapping, columns: list[str]) -> object:
    """The value that a column has for a name: its label where it has labels, else the name."""
    if column not in columns:
        raise AtelierError(f"The table has no column {column}. Leave {column} empty.")
    return known_name(name, labels[column], column)[0] if column in labels else name


def known_name(name: str, names: Iterable[str], kind: str) -> tuple[int, str]:
    """Place and spelling of a name in a list, whatever its case, spaces and hyphens; raises AtelierError if absent."""
    spelt = {_plain(n): (i, n) for i, n in enumerate(names)}
    if _plain(name) not in spelt:
        near = get_close_matches(_plain(name), spelt, 1, 0.5)
        known = ", ".join([n for _, n in spelt.values()][:30])
        hint = f"Did you mean {spelt[near[0]][1]}?" if near else f"Known: {known}."
        raise AtelierError(f"There is no {kind} {name}. {hint}")
    return spelt[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _ending(data: bytes) -> str:
    kinds = {b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
    return next((ending for start, ending in kinds.items() if data.startswith(start)), ".jpg")


# --- video ---


def unpack_video(file: Path, cache: Path, take: Take) -> Path:
    """Write frames of a video as PNG files into a cache folder, one every so many seconds or one for each scene.

    -> the folder; a frame is named by its time in milliseconds
    Raises AtelierError if the file is no readable video.
    """
    probe(file)

    def fill(target: Path) -> None:
        for seconds, pixels in _frames(file, take):
            Image.fromarray(pixels).save(target / f"{file.stem}_{round(seconds * 1000):09d}.png", compress_level=1)

    return _unpacked([file], cache, [take.seconds, take.scene], fill)


def _frames(file: Path, take: Take) -> Iterator[tuple[float, object]]:
    import av

    due, before = 0.0, None
    with av.open(str(file)) as container:
        try:
            for number, frame in enumerate(container.decode(video=0)):
                seconds = frame.time if frame.time is not None else float(number)
                if take.scene:
                    small = frame.reformat(64, 36, "gray").to_ndarray().astype(np.float32) / 255
                    wanted, before = before is None or float(np.abs(small - before).mean()) >= take.scene, small
                else:
                    wanted = seconds >= due - 1e-6
                if wanted:
                    due = _next(seconds, take.seconds)
                    yield seconds, upright((rgb_of(frame) * 255).round().astype(np.uint8), frame.rotation)
        except av.FFmpegError:  # a damaged end: the frames before it are good
            return


def _next(seconds: float, step: float) -> float:
    """The next whole multiple of the step after a time."""
    return (int((seconds + 1e-6) / step) + 1) * step if step > 0 else seconds

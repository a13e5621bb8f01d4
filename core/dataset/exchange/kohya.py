"""kohya's sd-scripts: a TOML file per split with a subset per number of repeats, each with its metadata JSON.

Pass train.toml as --dataset_config. A subset is told from another by its metadata file, so each has one of its own.
Several captions are lines, which kohya chooses from when `enable_wildcard` is set.
"""

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import AtelierError
from ..folder import picture_files
from .exchanged import SPLITS, Exchanged, Target, below, inside, read_caption_file, write_new
from .sidecar import place, sidecar_text

__all__ = ["place", "read", "write"]
SEPARATOR = ", "


def write(rows: Sequence[Exchanged], target: Target) -> None:
    """Write the TOML files and their metadata; picture paths are absolute, as kohya needs them."""
    root = Path(target.folder).resolve()
    for split in sorted({row.split for row in rows}):
        of_split = [row for row in rows if row.split == split]
        parts = ["[[datasets]]\n"]
        for repeats in sorted({row.repeats for row in of_split}):
            subset = [row for row in of_split if row.repeats == repeats]
            file = root / f"{split}_x{repeats}.json"
            told = {(root / row.path).as_posix(): _told(row) for row in subset}
            write_new(file, json.dumps(told, ensure_ascii=False, indent=1), target)
            parts.append(_subset(root, file, repeats, any("\n" in t.get("caption", "") for t in told.values())))
        write_new(root / f"{split}.toml", "\n".join(parts), target)


def _told(row: Exchanged) -> dict[str, str]:
    told = {"caption": "\n".join(row.captions)} if row.captions else {}
    return told | ({"tags": SEPARATOR.join(row.tags)} if row.tags else {})


def _subset(root: Path, file: Path, repeats: int, lines: bool) -> str:
    return (
        f"[[datasets.subsets]]\nimage_dir = {_quoted(root)}\nmetadata_file = {_quoted(file)}\nnum_repeats = {repeats}\n"
        + ("enable_wildcard = true\n" if lines else "")
    )


def _quoted(path: Path) -> str:
    # JSON's escapes are TOML's but for the one control sign that JSON leaves as it is.
    return json.dumps(path.as_posix(), ensure_ascii=False).replace("\x7f", "\\u007f")


def read(folder: Path, trigger: str) -> list[Exchanged]:
    """Read every TOML file of a folder; its name is the split where it is that of one, else the split is train.

    Subsets with a metadata file and subsets with caption files are both read.

    Raises AtelierError if there is none, or a file is damaged or missing.
    """
    files = sorted(Path(folder).glob("*.toml"))
    if not files:
        raise AtelierError(f"{folder} has no TOML file. Choose the folder that holds kohya's dataset config.")
    return below(found for file in files for found in _read_config(file))


def _read_config(file: Path) -> Iterator[tuple[str, Exchanged]]:
    try:
        config = tomllib.loads(read_caption_file(file))
    except tomllib.TOMLDecodeError as error:
        raise AtelierError(f"{file} is not TOML ({error}). Correct it.") from None
    split = SPLITS.get(file.stem, "train")
    general = config.get("general", {})
    for dataset in config.get("datasets", []):
        for subset in dataset.get("subsets", []):
            told = general | dataset | subset
            if told.get("metadata_file"):
                yield from _read_metadata(file, told, split)
            elif told.get("image_dir"):
                yield from _read_captions(file, told, split)


def _read_captions(config: Path, told: dict, split: str) -> Iterator[tuple[str, Exchanged]]:
    """A subset without metadata: text beside pictures, the first line of it unless wildcards are on."""
    root = _found(config, told["image_dir"], config.parent / Path(told["image_dir"]).name)
    for picture in picture_files(root):
        text = sidecar_text(picture, (told.get("caption_extension", ".caption"),))
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        captions = tuple(lines if told.get("enable_wildcard") else lines[:1])
        path = picture.relative_to(root).as_posix()
        yield root.name, Exchanged(path, captions or _class(told), (), split, _repeats(told))


def _class(told: dict) -> tuple[str, ...]:
    return (told["class_tokens"],) if told.get("class_tokens") else ()


def _read_metadata(config: Path, told: dict, split: str) -> Iterator[tuple[str, Exchanged]]:
    file = _found(config, told["metadata_file"], config.parent / Path(told["metadata_file"]).name)
    old_root = Path(told.get("image_dir", config.parent))
    root = _found(config, str(old_root), config.parent)
    try:
        entries = json.loads(read_caption_file(file)).items()
        for key, entry in entries:
            captions = [line for line in str(entry.get("caption") or "").split("\n") if line.strip()]
            tags = [tag.strip() for tag in str(entry.get("tags") or "").split(",") if tag.strip()]
            path = inside(_relative(key, old_root, root))
            yield root.name, Exchanged(path, tuple(captions), tuple(tags), split, _repeats(told))
    except (ValueError, AttributeError):
        raise AtelierError(f"{file} is not kohya's metadata, a JSON object by picture. Correct it.") from None


def _found(config: Path, path: str, otherwise: Path) -> Path:
    """A path of the config; where it is not there since the folder was moved, what took its place."""
    for candidate in (Path(path), config.parent / path, otherwise):
        if candidate.exists():
            return candidate
    raise AtelierError(f"{config.name} names {path}, which is not there. Correct the path.")


def _relative(key: str, old_root: Path, root: Path) -> str:
    """A metadata key as a path below the pictures' folder: absolute, relative, or without its ending."""
    path = Path(key)
    for base in (old_root, root):
        if path.is_relative_to(base):
            path = path.relative_to(base)
    if not (root / path).is_file():
        beside = (root / path.parent).glob("*")
        path = next((f.relative_to(root) for f in sorted(beside) if f.stem == path.name), path)
    return path.as_posix()


def _repeats(told: dict) -> int:
    return max(1, int(told.get("num_repeats", 1)))

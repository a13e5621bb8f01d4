"""SimpleTuner: a folder per split and number of repeats, named in multidatabackend.json.

Captions are lines of the text beside a picture, or columns of a parquet table. SimpleTuner counts *further* repeats:
its 0 is our 1.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...errors import AtelierError
from ...files import write_whole
from ..folder import picture_files
from .exchanged import SPLITS, Exchanged, Target, below, inside, read_caption_file, write_beside, write_new
from .sidecar import sidecar_text

NAME = "multidatabackend.json"
KINDS = {"train": {}, "validation": {"dataset_type": "eval"}, "test": {"disabled": True}}
COLUMNS = {"filename_column": "filename", "caption_column": "captions", "fallback_caption_column": "tags"}


def place(row: Exchanged) -> str:
    """The picture's path within the export."""
    return f"{_backend_of(row)}/{row.path}"


def _backend_of(row: Exchanged) -> str:
    return f"{row.split}_x{row.repeats}"


def write(rows: Sequence[Exchanged], target: Target) -> None:
    """Write each row's captions as lines of the text beside its picture, and the backends."""
    write_beside(((place(row), "\n".join(row.said)) for row in rows), ".txt", target)
    _write_backends(rows, target, lambda _: {"caption_strategy": "textfile"})


def write_parquet(rows: Sequence[Exchanged], target: Target) -> None:
    """Write each backend's captions and tags as a parquet table, and the backends.

    Raises AtelierError if pyarrow is missing.
    """
    parquet, arrow = _pyarrow()
    schema = arrow.schema(
        [("filename", arrow.string()), ("captions", arrow.list_(arrow.string())), ("tags", arrow.list_(arrow.string()))]
    )
    for name in sorted({_backend_of(row) for row in rows}):
        file = Path(target.folder) / f"{name}.parquet"
        if file.exists() and not target.replace:
            raise AtelierError(f"{file} is there already. Choose an empty folder or allow replacing.")
        told = [{"filename": r.path, "captions": r.captions, "tags": r.tags} for r in rows if _backend_of(r) == name]
        table = arrow.Table.from_pylist(told, schema=schema)
        write_whole(file, lambda part, table=table: parquet.write_table(table, part))
    _write_backends(rows, target, lambda name: _parquet_options(Path(target.folder).resolve() / f"{name}.parquet"))


def _parquet_options(file: Path) -> dict:
    options = {"path": file.as_posix(), **COLUMNS, "identifier_includes_extension": True}
    return {"caption_strategy": "parquet", "metadata_backend": "parquet", "parquet": options}


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AtelierError("Parquet needs the package pyarrow. Install it with: pip install pyarrow") from None
    return pyarrow.parquet, pyarrow


def _write_backends(rows: Sequence[Exchanged], target: Target, captions: Callable[[str], dict]) -> None:
    root = Path(target.folder).resolve()
    backends = []
    for split, repeats in sorted({(row.split, row.repeats) for row in rows}):
        name = f"{split}_x{repeats}"
        backend = {"id": name, "type": "local", "instance_data_dir": (root / name).as_posix(), "repeats": repeats - 1}
        backends.append(backend | KINDS[split] | captions(name))
    write_new(root / NAME, json.dumps(backends, ensure_ascii=False, indent=1), target)


def read(folder: Path, trigger: str) -> list[Exchanged]:
    """Read the local backends of a multidatabackend.json, with captions from text files or parquet.

    Raises AtelierError if it is missing or damaged, or pyarrow is missing for a parquet.
    """
    root = Path(folder)
    if not (root / NAME).is_file():
        raise AtelierError(f"{root} has no {NAME}. Choose the folder that holds SimpleTuner's backends.")
    try:
        backends = json.loads(read_caption_file(root / NAME))
        local = [b for b in backends if b.get("type", "local") == "local" and b.get("instance_data_dir")]
    except (ValueError, AttributeError, TypeError):
        raise AtelierError(f"{root / NAME} is not a JSON list of backends. Correct it.") from None
    return below(found for backend in local for found in _read_backend(root, backend))


def _read_backend(root: Path, backend: dict) -> Iterator[tuple[str, Exchanged]]:
    told = str(backend["instance_data_dir"])
    folder = next((f for f in (Path(told), root / told, root / Path(told).name) if f.is_dir()), None)
    if folder is None:
        raise AtelierError(f"{NAME} names the folder {told}, which is not there. Correct the path.")
    kind = "validation" if backend.get("dataset_type") == "eval" else "train"
    split = SPLITS.get(str(backend.get("id", "")).split("_x")[0], kind)
    table = _read_table(root, backend["parquet"]) if backend.get("caption_strategy") == "parquet" else None
    for picture in picture_files(folder):
        path = picture.relative_to(folder).as_posix()
        captions, tags = (
            table.get(path, table.get(path.rpartition(".")[0], ((), ()))) if table else (_lines(picture), ())
        )
        yield folder.name, Exchanged(path, captions, tags, split, int(backend.get("repeats", 0)) + 1)


def _lines(picture: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in sidecar_text(picture).split("\n") if line.strip())


def _read_table(root: Path, options: dict) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Captions and tags by file name."""
    parquet, _ = _pyarrow()
    told = str(options["path"])
    file = next((f for f in (Path(told), root / told, root / Path(told).name) if f.is_file()), None)
    if file is None:
        raise AtelierError(f"{NAME} names {told}, which is not there. Correct the path.")
    name, text = options.get("filename_column", "id"), options.get("caption_column", "caption")
    rows = parquet.read_table(file, partitioning=None).to_pylist()
    return {inside(str(row[name])): (_texts(row.get(text)), _texts(row.get("tags"))) for row in rows}


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(str(v) for v in value)
    return (str(value),) if value else ()

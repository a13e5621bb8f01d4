"""load, curate, caption: a folder becomes a dataset file."""

from collections.abc import Iterator
from pathlib import Path

from ...core.dataset.captions import fill_captions, write_sidecars
from ...core.dataset.contact_sheet import contact_sheet
from ...core.dataset.curate import CurateOptions, curate
from ...core.dataset.folder import load_folder
from ...core.dataset.record import Dataset, load_dataset, save_dataset
from ...core.images import save_picture


def open_dataset(path: Path, validation: int = 0) -> Dataset:
    """A dataset file, or a folder read as one."""
    return load_dataset(path) if path.is_file() else load_folder(path, validation)


def add_load(parser) -> None:
    parser.add_argument("folder", type=Path, help="folder with pictures and sidecar captions")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")
    parser.add_argument("--validation", type=int, default=0, help="set one in so many pictures aside; 0 for none")


def run_load(args) -> Iterator[str]:
    dataset = load_folder(args.folder, args.validation)
    yield f"{save_dataset(dataset, args.out)}: {dataset.summary()}"


def add_curate(parser) -> None:
    from ..cli import add_options

    parser.add_argument("dataset", type=Path, help="dataset file or folder")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (.jpg or .png)")
    add_options(parser, CurateOptions)


def run_curate(args) -> Iterator[str]:
    from ..cli import read_options

    dataset = curate(open_dataset(args.dataset), read_options(CurateOptions, args))
    for row in dataset.rows:
        if row.rejected:
            yield f"left out {row.path}: {row.rejected.reason}"
    if args.sheet:
        save_picture(args.sheet, contact_sheet(dataset))
        yield f"{args.sheet}: contact sheet"
    yield f"{save_dataset(dataset, args.out)}: {dataset.summary()}"


def add_caption(parser) -> None:
    parser.add_argument("dataset", type=Path, help="dataset file or folder")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")
    parser.add_argument("--template", default="a picture of {name}", help="{name}, {folder}, {trigger}, {caption}")
    parser.add_argument("--trigger", default="", help="value of {trigger}")
    parser.add_argument("--write-files", action="store_true", help="write .txt files beside pictures without one")


def run_caption(args) -> Iterator[str]:
    dataset = fill_captions(open_dataset(args.dataset), args.template, args.trigger)
    if args.write_files:
        yield f"{write_sidecars(dataset)} caption files written"
    yield f"{save_dataset(dataset, args.out)}: {dataset.summary()}"


COMMANDS = {
    "load": ("Read a folder of pictures into a dataset file.", add_load, run_load),
    "curate": ("Leave out small, blurred and repeated pictures.", add_curate, run_curate),
    "caption": ("Give pictures without a caption one from a template.", add_caption, run_caption),
}

"""load, curate, filter, caption: pictures on disk become a dataset file, and what is wanted of them."""

import argparse
import math
from collections.abc import Generator, Iterator
from pathlib import Path

from ...core.dataset.contact_sheet import contact_sheet
from ...core.dataset.curate import CurateOptions, curate
from ...core.dataset.folder import load_folder
from ...core.dataset.opening import hold_out, open_dataset, remarks
from ...core.dataset.record import Dataset
from ...core.dataset.scan import Progress
from ...core.dataset.selection import select
from ...core.dataset.templates import fill_captions, write_sidecars
from ...core.dataset.unpack import Take
from ...core.dataset.view import View
from ...core.dataset.view_file import read_view, write_view
from ...core.images import save_picture


def add_dataset(parser) -> None:
    """The arguments of every command that takes a dataset and writes it again."""
    parser.add_argument("dataset", type=Path, help="dataset file, or a folder, archive, table or video")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")


def number(kind: type, low: float, high: float = math.inf):
    """A number between two others, for argparse."""

    def read(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} is not from {low:g}" + (f" to {high:g}" if high < math.inf else " up")
            )
        return value

    read.__name__ = kind.__name__
    return read


def view_at(path: Path, out: Path, take: Take | None = None) -> Generator[str, None, View]:
    """A dataset file, or a source read into a store beside the file to write.

    -> how far the scan is; returns the view
    """
    if path.suffix == ".json" and path.is_file():
        return read_view(path)
    view = yield from said(open_dataset(path, out.with_suffix(""), take))
    return view


def said(steps: Generator[Progress | int, None, View], every: int = 512) -> Generator[str, None, View]:
    """Run steps to their end, saying now and then how far they are; returns what comes of them."""
    last = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            return stop.value
        if isinstance(step, Progress) and step.done - last >= every:
            last = step.done
            yield f"{step.done} of {step.total} pictures"


def record_at(path: Path, validation: int = 0) -> Dataset:
    """What the trainer reads of a dataset file or a folder."""
    return hold_out(read_view(path), validation).dataset() if path.is_file() else load_folder(path, validation)


def written(view: View, out: Path) -> str:
    """Write a dataset file and say what it holds."""
    return f"{write_view(view, out)}: {view.summary()}"


def add_load(parser) -> None:
    parser.add_argument("folder", type=Path, help="folder, .zip, .tar, .parquet or video with pictures")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")
    parser.add_argument(
        "--validation", type=number(int, 0, 1000), default=0, help="set one in so many pictures aside; 0 for none"
    )
    parser.add_argument("--style", default="", help="of WikiArt: only this style, as Impressionism")
    parser.add_argument("--artist", default="", help="of WikiArt: only this artist, as claude-monet")
    parser.add_argument(
        "--seconds", type=number(float, 0.01, 3600), default=1.0, help="of a video: one frame in so many seconds"
    )
    parser.add_argument(
        "--scene", type=number(float, 0, 1), default=0.0, help="of a video: change that starts a scene; 0 is off"
    )


def run_load(args) -> Iterator[str]:
    take = Take(args.style, args.artist, args.seconds, args.scene)
    view = yield from view_at(args.folder, args.out, take)
    if args.validation:
        view = hold_out(view, args.validation)
    yield from remarks(view)
    yield written(view, args.out)


def add_curate(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (.jpg or .png)")
    add_options(parser, CurateOptions)


def run_curate(args) -> Iterator[str]:
    from ..cli import read_options

    whole = yield from view_at(args.dataset, args.out)
    view = yield from said(curate(whole, read_options(CurateOptions, args)))
    paths = {row.id: row.path for row in whole.rows()}
    for one in view.left_out:
        yield f"left out {paths.get(one.id, one.id)}: {one.reason}"
    if args.sheet:
        save_picture(args.sheet, contact_sheet(view))
        yield f"{args.sheet}: contact sheet"
    yield written(view, args.out)


def add_filter(parser) -> None:
    add_dataset(parser)
    parser.add_argument("expression", help="such as: sharpness > 0.4 and not tag:watermark")
    parser.add_argument("--order", default="", help="a name or score to sort by; --order=-sharpness is falling")
    parser.add_argument("--most", type=number(int, 0), default=0, help="as many as this at most; 0 for all")


def run_filter(args) -> Iterator[str]:
    whole = yield from view_at(args.dataset, args.out)
    yield written(select(whole, args.expression, args.order, args.most), args.out)


def add_caption(parser) -> None:
    add_dataset(parser)
    parser.add_argument(
        "--template", default="a picture of {name}", help="{name}, {folder}, {trigger}, {caption}, {tags}, {style}"
    )
    parser.add_argument("--trigger", default="", help="value of {trigger}")
    parser.add_argument("--write-files", action="store_true", help="write .txt files beside pictures without one")


def run_caption(args) -> Iterator[str]:
    whole = yield from view_at(args.dataset, args.out)
    view = fill_captions(whole, args.template, args.trigger)
    if args.write_files:
        yield f"{write_sidecars(view)} caption files written"
    yield written(view, args.out)


COMMANDS = {
    "load": ("Read a folder, archive, table or video of pictures into a dataset file.", add_load, run_load),
    "curate": ("Leave out small, blurred, noisy and repeated pictures.", add_curate, run_curate),
    "filter": ("Take the pictures that an expression selects.", add_filter, run_filter),
    "caption": ("Give pictures without a person's caption one from a template.", add_caption, run_caption),
}

"""split-dataset, augment, balance, faces, crop, buckets, report, export, import: what a dataset file goes through after loading."""

from collections.abc import Iterator
from pathlib import Path

from ...core.counting import counted
from ...core.dataset.augment import AugmentOptions, mirror_warnings, variants
from ...core.dataset.balance import BalanceOptions, balance
from ...core.dataset.bucket_report import report_buckets
from ...core.dataset.crop import CropOptions
from ...core.dataset.curate import duplicates
from ...core.dataset.exchange.exchanged import Target
from ...core.dataset.exchange.formats import FORMATS, import_rows
from ...core.dataset.framing import ASPECTS, crop_view, find_faces_in, trained_sizes
from ...core.dataset.opening import THUMBS
from ...core.dataset.report import Found, ReportOptions, report
from ...core.dataset.split import SplitOptions, split_view
from ...core.dataset.store import Store
from ...core.dataset.transfer import export_view, with_exchanged
from ...core.evaluation.dataset_page import write_page
from .dataset import add_dataset, number, said, view_at, written


def add_split(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument("--apart", action="store_true", help="do not look for copies, which stay together otherwise")
    add_options(parser, SplitOptions)


def run_split(args) -> Iterator[str]:
    from ..cli import read_options

    whole = yield from view_at(args.dataset, args.out)
    found = [] if args.apart else (yield from said(duplicates(whole, whole.rows(), False)))
    groups = [(group.kept, *group.left_out) for group in found]
    view = split_view(whole, read_options(SplitOptions, args), groups)
    counts = {}
    for row in view.rows():
        counts[row.split] = counts.get(row.split, 0) + 1
    yield ", ".join(f"{count} {name}" for name, count in counts.items())
    yield written(view, args.out)


def add_augment(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    add_options(parser, AugmentOptions)


def run_augment(args) -> Iterator[str]:
    from ..cli import read_options

    whole = yield from view_at(args.dataset, args.out)
    options, rows = read_options(AugmentOptions, args), whole.rows()
    paths = {row.id: row.path for row in rows}
    for warning in mirror_warnings(rows, options):
        yield f"{paths[warning.id]} says {', '.join(warning.words[:4])}: {warning.done}"
    yield written(whole.with_variants(variants(rows, options)), args.out)


def add_balance(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument("--by", default="folder", help="folder, aspect, format, column:artist, tag:portrait,landscape")
    add_options(parser, BalanceOptions)


def run_balance(args) -> Iterator[str]:
    from ..cli import read_options

    whole = yield from view_at(args.dataset, args.out)
    found = balance(whole.kept_rows(), args.by, read_options(BalanceOptions, args))
    yield from (f"{group.name or 'others'}: {group.reason}" for group in found.groups)
    yield written(whole.lay({own: {"repeats": times} for own, times in found.repeats.items()}), args.out)


def add_faces(parser) -> None:
    add_dataset(parser)
    parser.add_argument("--again", action="store_true", help="look again where it was looked before")


def run_faces(args) -> Iterator[str]:
    whole = yield from view_at(args.dataset, args.out)
    yield from said(find_faces_in(whole, args.again))
    view = whole.renewed()
    yield f"{len(view.filter('faces >= 1'))} of {len(view)} pictures have a face"
    yield written(view, args.out)


def add_crop(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument(
        "--aspect", choices=list(ASPECTS), default="buckets", help="an aspect, or the buckets of a training"
    )
    parser.add_argument("--resolution", type=number(int, 64, 4096), default=1024, help="of the training, for buckets")
    add_options(parser, CropOptions)


def run_crop(args) -> Iterator[str]:
    from ..cli import read_options

    whole = yield from view_at(args.dataset, args.out)
    view, lines = yield from said(crop_view(whole, args.aspect, args.resolution, read_options(CropOptions, args)))
    yield from lines
    yield written(view, args.out)


def add_buckets(parser) -> None:
    add_dataset(parser)
    parser.add_argument("--resolution", type=number(int, 64, 4096), default=1024, help="of the training")
    parser.add_argument("--batch-size", type=number(int, 1, 256), default=1, help="of the training")


def run_buckets(args) -> Iterator[str]:
    view = yield from view_at(args.dataset, args.out)
    yield report_buckets(trained_sizes(view), args.resolution, args.batch_size).text()


def add_report(parser) -> None:
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument("--page", type=Path, default=Path("dataset.html"), help="HTML page to write")
    add_options(parser, ReportOptions)


def run_report(args) -> Iterator[str]:
    from ..cli import read_options

    view = yield from view_at(args.dataset, args.out)
    groups = yield from said(duplicates(view, view.rows(), False))
    with Store(view.store, made=False) as store:
        faults = store.faults()
    found = Found(groups=groups, faults=faults, captions=view.captions)
    figures = report(view.rows(), view.store.parent / THUMBS, read_options(ReportOptions, args), found)
    yield from figures.lines()
    yield f"{write_page(figures, args.page, args.dataset.stem)}: all of it on one page"


def add_export(parser) -> None:
    add_dataset(parser)
    parser.add_argument("folder", type=Path, help="folder to write: an empty one, or the same dataset again")
    parser.add_argument("--format", choices=list(FORMATS), default="kohya", help="how it is written")
    parser.add_argument("--trigger", default="", help="the word that ai-toolkit is to have as [trigger]")
    parser.add_argument("--replace", action="store_true", help="let this export take the place of an earlier one there")


def run_export(args) -> Iterator[str]:
    view = yield from view_at(args.dataset, args.out)
    done = export_view(view, args.format, Target(args.folder, args.folder, args.replace, args.trigger))
    yield f"{args.folder}: {counted(done.pictures, 'picture')} for {args.format}"
    yield from done.lines(args.format)


def add_import(parser) -> None:
    parser.add_argument("dataset", type=Path, metavar="folder", help="folder that a trainer uses")
    parser.add_argument("--out", type=Path, default=Path("dataset.json"), help="dataset file to write")
    parser.add_argument("--format", choices=list(FORMATS), default="kohya", help="how it is written")
    parser.add_argument("--trigger", default="", help="the word for ai-toolkit's [trigger]; empty: as exported")


def run_import(args) -> Iterator[str]:
    rows = import_rows(args.format, args.dataset, args.trigger)
    whole = yield from view_at(args.dataset, args.out)
    yield written(with_exchanged(whole, rows, FORMATS[args.format].place), args.out)


COMMANDS = {
    "faces": ("Look for faces with a detector that needs no model file.", add_faces, run_faces),
    "crop": ("Crop so that no face is cut and the subject stays; only recorded.", add_crop, run_crop),
    "buckets": ("Tell which sizes a training would use and what they cost.", add_buckets, run_buckets),
    "split-dataset": ("Set pictures aside for validation and test.", add_split, run_split),
    "augment": ("Record mirrored, turned, cropped and recoloured copies.", add_augment, run_augment),
    "balance": ("Set repeats so that groups weigh what they should.", add_balance, run_balance),
    "report": ("Tell what a dataset is made of, on one page.", add_report, run_report),
    "export": ("Write a dataset for another trainer.", add_export, run_export),
    "import": ("Read a dataset that another trainer uses.", add_import, run_import),
}

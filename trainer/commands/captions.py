"""caption-model, caption-tags, caption-endpoint, style, fuse, lint, edit-captions: captions of a dataset, in its store."""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import torch

from ...core.dataset.store import Store
from ...core.dataset.view import View
from ..captioners.describing import describe, distribution, tagged
from ..captioners.fusing import fates, fuse_view, support_table
from ..captioners.interrogator import Likeness
from ..captioners.job import Tally, caption_items
from ..captioners.opening import WhenAsked, endpoint_captioner, tagger_captioner, vision_captioner
from ..captioners.options import (
    AskOptions,
    EditOptions,
    EndpointOptions,
    FuseOptions,
    LintOptions,
    StyleOptions,
    TaggerOptions,
    VisionOptions,
)
from ..captioners.rewriting import edit_lines, edit_view, keep_edit, lint_lines, lint_view, rewritten
from ..captioners.store_ledger import StoreLedger, captioned, items_of
from .dataset import add_dataset, view_at, written


def add_captions(parser, *kinds: type) -> None:
    """The arguments of a command that captions, and the flags of its option models."""
    from ..cli import add_options

    add_dataset(parser)
    parser.add_argument("--filter", default="", help="only pictures that this selects, such as: not captioned")
    for kind in kinds:
        add_options(parser, kind)


def opened(args) -> Generator[str, None, tuple[View, View]]:
    """The whole dataset, and the part that a command is about; a store file is viewed whole."""
    if args.dataset.suffix == ".db":
        with Store(args.dataset, made=False) as store:
            view = View.of(store)
    else:
        view = yield from view_at(args.dataset, args.out)
    return view, view.filter(args.filter) if args.filter else view


def device(args) -> torch.device:
    """Where a model runs."""
    wanted = args.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def add_device(parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def add_author(parser) -> None:
    parser.add_argument("--name", default="", help="author of the captions; left out, the model's name")


def captions_by(captioner: WhenAsked, args) -> Iterator[str]:
    """Caption what is asked for, telling each batch; then the dataset file, which prefers this model."""
    from ..cli import read_options

    view, part = yield from opened(args)
    items, tally = items_of(part), Tally()
    ask = read_options(AskOptions, args)
    with (
        Store(view.store, made=False) as store,
        closing(caption_items(items, captioner, ask, StoreLedger(store))) as steps,
    ):
        for step in steps:
            tally.add(step)
            yield f"{step.done} of {step.total}"
    yield from [*tally.lines(captioner.name, {item.id: item.file.name for item in items}), *captioner.notes]
    yield written(captioned(view, captioner.name), args.out)


def add_model(parser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a vision-language model")
    add_captions(parser, AskOptions, VisionOptions)
    add_author(parser)
    add_device(parser)


def run_model(args) -> Iterator[str]:
    from ..cli import read_options

    how = read_options(VisionOptions, args)
    yield from captions_by(vision_captioner(args.folder, how, lambda: device(args), args.name), args)


def add_tags(parser) -> None:
    parser.add_argument("folder", type=Path, help="folder with model.onnx and selected_tags.csv")
    add_captions(parser, AskOptions, TaggerOptions)
    add_author(parser)


def run_tags(args) -> Iterator[str]:
    from ..cli import read_options

    yield from captions_by(tagger_captioner(args.folder, read_options(TaggerOptions, args), args.name), args)


def add_endpoint(parser) -> None:
    add_captions(parser, AskOptions, EndpointOptions)
    add_author(parser)


def run_endpoint(args) -> Iterator[str]:
    from ..cli import read_options

    yield from captions_by(endpoint_captioner(read_options(EndpointOptions, args), args.name), args)


def add_style(parser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a CLIP or SigLIP model")
    add_captions(parser, StyleOptions)
    add_device(parser)


def run_style(args) -> Iterator[str]:
    from ..cli import read_options

    how = read_options(StyleOptions, args)
    view, part = yield from opened(args)
    found = {}
    with (
        Store(view.store, made=False) as store,
        closing(describe(part, args.folder, how, lambda: device(args), StoreLedger(store))) as steps,
    ):
        for step in steps:
            found |= step.found
            yield f"{step.done} of {step.total}"
            yield from (f"failed {one.row}: {one.reason}" for one in step.failed)
    yield from distribution(found)
    view = captioned(view, args.folder.name) if how.captions else view
    yield written(tagged(view, found) if how.tags else view, args.out)


def add_fuse(parser) -> None:
    add_captions(parser, FuseOptions)
    parser.add_argument("--name", default="fused", help="author of the fused captions")
    parser.add_argument("--clip", type=Path, help="CLIP or SigLIP folder that puts first what fits the picture")
    parser.add_argument("--shown", type=int, default=8, help="pictures whose claims are told")
    add_device(parser)


def run_fuse(args) -> Iterator[str]:
    from ..cli import read_options

    how = read_options(FuseOptions, args)
    view, part = yield from opened(args)
    made, bare, locked = [], [], 0
    with Store(view.store, made=False) as store:
        likeness = Likeness(args.clip, device(args)) if args.clip else None
        for step in fuse_view(part, how, args.name, StoreLedger(store), likeness):
            made, bare, locked = [*made, *step.made], [*bare, *step.bare], step.locked
    for name, fusion in made[: args.shown]:
        yield support_table(name, fusion)
    yield (
        ", ".join(f"{count} claims {fate}" for fate, count in fates([fusion for _, fusion in made]).items())
        or "no claim"
    )
    yield f"{len(made)} fused, {len(bare)} without enough support, {locked} a person's"
    yield written(captioned(view, args.name), args.out)


def add_apply(parser) -> None:
    parser.add_argument("--apply", action="store_true", help="change the captions; without it the changes are shown")


def add_lint(parser) -> None:
    add_captions(parser, LintOptions)
    add_apply(parser)


def run_lint(args) -> Iterator[str]:
    from ..cli import read_options

    view, part = yield from opened(args)
    found = lint_view(part, read_options(LintOptions, args))
    yield from lint_lines(found)
    if args.apply:
        view = kept(view, rewritten(part, found.edit, "lint", found.anew))
    yield from edit_lines(found.edit, args.apply, found.human)
    yield written(view, args.out)


def kept(view: View, part: View) -> View:
    """The whole dataset after a part of it was changed."""
    laid = {own: part.laid[own] for own in part.ids if own in part.laid}
    return (view.lay(laid) if laid else view).renewed()


def add_edit(parser) -> None:
    add_captions(parser, EditOptions)
    add_apply(parser)


def run_edit(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(EditOptions, args)
    view, part = yield from opened(args)
    found = edit_view(part, options)
    if args.apply:
        view = kept(view, keep_edit(part, found, options, "edit-captions"))
    yield from edit_lines(found.edit, args.apply, found.human)
    yield from [f"{found.done} captions are as this edit left them before"] * bool(found.done)
    yield written(view, args.out)


COMMANDS = {
    "caption-model": ("Caption pictures with a vision-language model in a folder.", add_model, run_model),
    "caption-tags": ("Caption pictures with a tagger in ONNX.", add_tags, run_tags),
    "caption-endpoint": ("Caption pictures through a chat endpoint in OpenAI's form.", add_endpoint, run_endpoint),
    "style": ("Tell style, medium and artist of pictures with a CLIP model.", add_style, run_style),
    "fuse": ("Make one caption of several models'.", add_fuse, run_fuse),
    "lint": ("Find faults of captions, and mend them if asked.", add_lint, run_lint),
    "edit-captions": ("Find and replace, prefix, suffix and order in all captions.", add_edit, run_edit),
}

"""stylise, edit and color: pictures drawn again, edited by words, and given other colours."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ...core.dataset.folder import open_mask, open_picture
from ...core.errors import AtelierError
from ...core.files import refuse_overwriting
from ...core.images import save_picture, to_picture, to_tensor
from ...core.lora.formats import read_lora
from ...core.options import leaves, parse
from ...core.style.color import ColorMap, ColorOptions, Still, apply_map, colorful, fit_map, tabulate, transfer_color
from ...core.style.edit import FlowEditOptions, InversionOptions
from ...core.style.lut import read_cube, write_cube
from ...core.style.statistics import moments
from ..draw import Editing, PipelineArtist, Restyling, flux_pipeline
from ..encoders import FileEncoder
from .train import add_model, device_of, model_files

WALK = ("source_guidance", "target_guidance", "steps", "seed")
ENDINGS = (".png", ".jpg", ".jpeg")
METHODS = {"flowedit": FlowEditOptions, "rf-inversion": InversionOptions}


def add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora", type=Path, help="LoRA file")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="strength of the LoRA")


def artist_of(args) -> PipelineArtist:
    """The pipeline that the model and LoRA arguments name."""
    files = model_files(args)
    encoder = FileEncoder(files, device_of(args))
    lora = read_lora(args.lora) if args.lora else None
    return PipelineArtist(flux_pipeline(files, encoder, lora, args.lora_strength), files.t5_length)


def read_mask(path: Path | None, like: Tensor) -> Tensor | None:
    """A mask as [1, H, W] in 0..1; raises AtelierError where its size is not the picture's."""
    if path is None:
        return None
    mask = to_tensor(open_mask(path, alpha=False))[:1]
    if mask.shape[1:] != like.shape[1:]:
        sizes = [f"{t.shape[2]} x {t.shape[1]}" for t in (mask, like)]
        raise AtelierError(
            f"{path} has {sizes[0]} pixels and the picture {sizes[1]}. Give a mask of the picture's size."
        )
    return mask


def files_to_write(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    """Where the results of pictures go, as PNG; raises AtelierError where one would take the place of another."""
    out = [folder / f"{path.stem}.png" for path in pictures]
    twice = next((path for path in out if out.count(path) > 1), None)
    if twice:
        raise AtelierError(f"Two of the pictures would be written as {twice}. Give them in two calls, or rename one.")
    for path in out:
        refuse_overwriting(path, pictures)
    return out


def add_stylise(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("pictures", type=Path, nargs="+", help="pictures, of any size")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    add_lora(parser)
    parser.add_argument("--prompt", default="", help="what the pictures show")
    colors = parser.add_mutually_exclusive_group()
    colors.add_argument("--color-from", type=Path, help="picture whose palette the results take")
    colors.add_argument("--keep-colors", action="store_true", help="results take their own picture's palette")
    parser.add_argument("--mask", type=Path, help="grey picture: white is drawn again, black stays as it is")
    add_model(parser)
    add_options(parser, Restyling)


def run_stylise(args) -> Iterator[str]:
    from ..cli import read_options

    out = files_to_write(args.out, args.pictures)
    reference = to_tensor(open_picture(args.color_from)) if args.color_from else None
    how = read_options(Restyling, args)
    for source in args.pictures:  # plain mistakes are told before a model is loaded
        read_mask(args.mask, to_tensor(open_picture(source)))
    artist = artist_of(args)
    for source, target in zip(args.pictures, out, strict=True):
        picture = to_tensor(open_picture(source))
        mask = read_mask(args.mask, picture)
        # The mask blends once, after colours, or soft edges would be thinned out twice.
        free = None if mask is None else (mask > 0).float()
        drawn = artist.stylise(picture, args.prompt, how, free)
        if args.keep_colors or reference is not None:
            own, where = reference is None, None if free is None else free[None]
            wanted = picture if reference is None else reference
            drawn = transfer_color(drawn[None], wanted, mask=where, reference_mask=where if own else None)[0]
        save_picture(target, to_picture(drawn if mask is None else picture.lerp(drawn, mask.expand_as(drawn))))
        yield str(target)


def add_edit(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("picture", type=Path, help="the picture, of any size")
    parser.add_argument("--source", required=True, help="what the picture shows")
    parser.add_argument("--target", required=True, help="what it shall show; the rest of the words as in the source")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--method", choices=tuple(METHODS), default="flowedit", help="how; flowedit needs no inversion")
    for name in WALK:
        field = Editing.model_fields[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(field.default), default=field.default, help=field.description
        )
    parser.add_argument("--mask", type=Path, help="grey picture: white is edited, black stays as it is")
    add_lora(parser)
    add_model(parser)
    parser.conflict_handler = "resolve"  # both methods have a strength, each with its own default
    for kind in METHODS.values():
        add_options(parser, kind)
    parser.add_argument_group("strength").add_argument(
        "--strength",
        type=float,
        default=argparse.SUPPRESS,
        help="Share of the steps that are gone back, 0 to 1. Default: 0.85 for flowedit, 1 for rf-inversion.",
    )


def run_edit(args) -> Iterator[str]:
    from ..cli import read_options

    chosen = METHODS[args.method]
    for name, kind in METHODS.items():
        odd = next((k for k in leaves(kind) if k in vars(args) and k not in leaves(chosen)), None)
        if odd:
            raise AtelierError(
                f"--{odd.replace('_', '-')} belongs to --method {name}. Leave it out, or change the method."
            )
    if args.out.suffix.lower() not in ENDINGS:
        raise AtelierError(f"--out is {args.out.name}. Give a name that ends in {', '.join(ENDINGS)}.")
    refuse_overwriting(args.out, [args.picture])
    picture = to_tensor(open_picture(args.picture))
    mask = read_mask(args.mask, picture)
    given = {name: getattr(args, name) for name in ("source", "target", *WALK)}
    how = parse(Editing, given | {"options": read_options(chosen, args)}, "the command line")
    save_picture(args.out, to_picture(artist_of(args).edit(picture, how, mask)))
    yield str(args.out)


def add_color(parser: argparse.ArgumentParser) -> None:
    from ..cli import add_options

    parser.add_argument("pictures", type=Path, nargs="+", help="pictures; one map is made for all of them")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--reference", type=Path, help="picture whose palette they take")
    where.add_argument("--map", type=Path, help=".cube file to apply in place of a reference")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--cube", type=Path, help=".cube file to write, the map as a table")
    parser.add_argument("--size", type=int, default=33, help="entries along each side of that table")
    add_options(parser, ColorOptions)


class Opened(Sequence[Tensor]):
    """Pictures on disk as tensors [3, H, W], each opened when it is asked for: together they may not fit in memory."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place):
        return to_tensor(open_picture(self.files[place]))


def run_color(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(ColorOptions, args)
    if not args.out and not args.cube:
        raise AtelierError("There is nothing to write. Give --out FOLDER, --cube FILE, or both.")
    if args.map and (args.cube or "method" in vars(args)):
        raise AtelierError("--cube and --method make a map, and --map gives one. Leave out one of the two.")
    if args.cube and args.cube.suffix.lower() != ".cube":
        raise AtelierError(f"--cube is {args.cube.name}. Give a name that ends in .cube.")
    out = files_to_write(args.out, args.pictures) if args.out else []
    pictures = Opened(args.pictures)
    fitted = (
        read_cube(args.map) if args.map else fit_map(pictures, to_tensor(open_picture(args.reference)), options.method)
    )
    if isinstance(fitted, Still):
        yield "the pictures or the reference are flat: there are no colours to bring over"
    if args.cube:
        yield str(write_cube(args.cube, tabulate(fitted, args.size, options.strength), args.cube.stem))
    for target, source, picture in zip(out, args.pictures, pictures, strict=False):
        made = to_picture(mapped(fitted, picture, options.strength, bool(args.map)))
        alpha = open_mask(source, alpha=True)
        if alpha.getextrema()[0] < 255:
            made.putalpha(alpha)
        save_picture(target, made)
        yield str(target)


def mapped(fitted: ColorMap, picture: Tensor, strength: float, every: bool) -> Tensor:
    """A picture [3, H, W] with other colours; a flat one stays as it is unless every colour is to be changed."""
    share = 1.0 if every else colorful(moments(picture[None])).item()
    return apply_map(fitted, picture[None], strength * share)[0]


COMMANDS = {
    "stylise": ("Draw pictures again with a LoRA, through diffusers.", add_stylise, run_stylise),
    "edit": ("Change what two texts differ in, by FlowEdit or RF-inversion.", add_edit, run_edit),
    "color": ("Give pictures the palette of another, or write it as a .cube file.", add_color, run_color),
}

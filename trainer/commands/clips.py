"""deflicker, stabilise and restyle: steady films, file to file."""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ...core.counting import counted
from ...core.files import refuse_overwriting
from ...core.frames.cuts import Change, change_between, thumbnail
from ...core.frames.deflicker import DeflickerOptions, check_sound, deflicker_file
from ...core.frames.restyle import Canvas, RestyleOptions, Sketch
from ...core.frames.restyle_file import Film, FilmOptions, canvas_size, film_key, restyle_file
from ...core.frames.stabilise import StabiliseOptions, stabilise
from ...core.frames.stream import source_key
from ...core.frames.video import probe, read_frames, stamped_frames, write_video
from ...core.options import Options
from ...core.style.edit import Edit, redraw
from ...core.style.structure import PIXELS, from_strength, layout_kept, with_structure
from ..draw import PipelineArtist, Restyling, levels_for
from .frames import followed
from .style import add_lora, artist_of
from .train import add_model, model_files


def add_film(parser: argparse.ArgumentParser, *options: type[Options]) -> None:
    from ..cli import add_options

    parser.add_argument("--out", type=Path, required=True, help=".mp4 file to write")
    for kind in options:
        add_options(parser, kind)


def cuts_of(path: Path) -> list[int]:
    """Numbers of the frames of a film that begin a new shot."""
    cuts, before = [], None
    with closing(read_frames(path)) as frames:
        for number, frame in enumerate(frames):
            now = thumbnail(frame)
            if before is not None and change_between(before, now) is Change.CUT:
                cuts.append(number)
            before = now
    return cuts


def add_deflicker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, help="video file")
    add_film(parser, DeflickerOptions)


def run_deflicker(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(DeflickerOptions, args)
    count, shots = deflicker_file(args.video, args.out, options, lambda *_: None)
    yield f"{args.out}: {counted(count, 'frame')}, {counted(shots, 'shot')}"


def add_stabilise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the video before it was stylised: it tells the motion and the cuts")
    parser.add_argument("drawn", type=Path, help="the stylised video, as long and as large")
    add_film(parser, StabiliseOptions)


def run_stabilise(args) -> Iterator[str]:
    from ..cli import read_options

    options = read_options(StabiliseOptions, args)
    refuse_overwriting(args.out, [args.source, args.drawn])
    check_sound(args.drawn)
    cuts = cuts_of(args.source)
    clip, stamps = probe(args.drawn), []
    with closing(read_frames(args.source)) as source, closing(stamped_frames(args.drawn)) as stamped:
        frames = stabilise(source, noted(stamped, stamps), options, resets=cuts)
        count = write_video(args.out, frames, clip.rate, args.drawn, clip, stamps)
    yield f"{args.out}: {counted(count, 'frame')}, {counted(len(cuts) + 1, 'shot')}"


def noted(stamped: Iterable[tuple[Fraction, Tensor]], stamps: list[Fraction]) -> Iterator[Tensor]:
    """Frames alone, while their times are added to a list."""
    for stamp, frame in stamped:
        stamps.append(stamp)
        yield frame


def add_restyle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, help="video file")
    add_lora(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        help="what the film shows; again for each further shot, the last one serves the rest",
    )
    add_film(parser, Restyling, FilmOptions, RestyleOptions)
    add_model(parser)


def run_restyle(args) -> Iterator[str]:
    from ..cli import read_options

    how, part, options = (read_options(kind, args) for kind in (Restyling, FilmOptions, RestyleOptions))
    size = canvas_size(probe(args.video), part.longest_side)
    artist = artist_of(args)
    lora = source_key(args.lora) if args.lora else ""
    drawing = [
        model_keys(args),
        lora,
        args.lora_strength,
        args.prompt,
        how.model_dump(),
        options.model_dump(),
    ]
    film = Film(args.video, args.out, part, film_key(source_key(args.video), part, *drawing))
    canvas = canvas_of(artist, args.prompt or [""], how, size)
    yield from followed(restyle_file(film, canvas, options), args.out)


def model_keys(args) -> list[str]:
    """The files that the model arguments name, each by its place, size and time."""
    files = model_files(args)
    parts = (files.transformer, files.vae, files.clip, files.clip_tokenizer, files.t5, files.t5_tokenizer)
    within = (sorted(part.rglob("*")) if part.is_dir() else [part] for part in parts)
    return [source_key(file) for found in within for file in found if file.is_file()]


def canvas_of(artist: PipelineArtist, prompts: list[str], how: Restyling, size: tuple[int, int]) -> Canvas:
    """Draw a film's frames with a diffusers pipeline.

    prompts  one for each shot; the last one serves the rest
    size     height and width, multiples of 16
    """
    fields = [artist.velocity(prompt, how.guidance) for prompt in prompts]

    def draw(sketch: Sketch) -> Tensor:
        sigmas = levels_for(sketch.start, how.steps)
        levels = from_strength(sigmas, how.strength)
        if len(levels) == 1:
            return sketch.start
        start, field = artist.encode(sketch.start[None]), fields[min(sketch.shot, len(fields) - 1)]
        if how.structure:
            source = start if sketch.start is sketch.source else artist.encode(sketch.source[None])
            field = with_structure(field, source, layout_kept(how.structure, how.structure_until, size))
        drawn = redraw(Edit(start, sigmas, field, field), levels, sketch.noise[None].to(start))
        return artist.decode(drawn)[0]

    return Canvas(draw, (16, size[0] // PIXELS, size[1] // PIXELS), how.seed)


COMMANDS = {
    "deflicker": ("Even out a video's brightness and colour, shot by shot.", add_deflicker, run_deflicker),
    "stabilise": ("Hold a stylised video together along the motion of its source.", add_stabilise, run_stabilise),
    "restyle": ("Draw a video again with a LoRA, without flicker; a stopped run goes on.", add_restyle, run_restyle),
}

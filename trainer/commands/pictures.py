"""compare: what a LoRA does to prompts; the commands that change pictures come along from style.py."""

from collections.abc import Iterator
from pathlib import Path

from ...core.dataset.folder import picture_files
from ...core.errors import AtelierError
from ...core.evaluation.grid import picture_grid
from ...core.evaluation.style_figure import describe, describe_files, style_position
from ...core.images import save_picture, to_picture
from ...core.lora.formats import read_lora
from ..draw import Painter
from ..encoders import FileEncoder
from . import style
from .train import add_model, device_of, model_files


def add_compare(parser) -> None:
    parser.add_argument("lora", type=Path, help="LoRA file")
    parser.add_argument("--prompt", action="append", required=True, help="a prompt; give it again for more")
    parser.add_argument("--out", type=Path, default=Path("compare.png"), help="grid to write")
    parser.add_argument("--target", type=Path, help="folder of the wanted style, for the style figure")
    parser.add_argument("--strength", type=float, default=1.0, help="strength of the LoRA")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=3.5, help="Flux guidance")
    parser.add_argument("--size", default="1024x1024", help="width x height in pixels (nano-flux: 64x64)")
    add_model(parser)


def read_size(text: str) -> tuple[int, int]:
    """ "512x768" as width and height; raises AtelierError if it is none, or no multiple of 16."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise AtelierError(f"The size is {text!r}. Write width x height, such as 512x768.") from None
    if width % 16 or height % 16 or min(width, height) < 16:
        raise AtelierError(f"The size is {width} x {height}. Both sides must be multiples of 16.")
    return width, height


def run_compare(args) -> Iterator[str]:
    files, lora, size = model_files(args), read_lora(args.lora), read_size(args.size)
    encoder = FileEncoder(files, device_of(args))
    seeds = [args.seed + i for i in range(len(args.prompt))]
    base, with_it = (
        Painter(files, encoder, chosen, args.strength).draw(args.prompt, seeds, size, args.steps, args.guidance)
        for chosen in (None, lora)
    )
    lines = [[to_picture(p) for p in part] for part in (base, with_it)]
    save_picture(args.out, picture_grid(lines, ["base", "LoRA"], args.prompt, max(128, min(512, size[0]))))
    yield f"{args.out}: {len(args.prompt)} prompts, base above LoRA"
    if args.target:
        target = describe_files(list(picture_files(args.target)), size)
        figure = style_position(describe(with_it), describe(base), target).mean().item()
        yield f"style figure {figure:.3f} (0 is the base, 1 the target)"


COMMANDS = {
    "compare": ("Draw the same prompts and seeds with and without a LoRA.", add_compare, run_compare),
    **style.COMMANDS,
}

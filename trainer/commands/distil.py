"""distil: several LoRAs become one of a chosen rank, by training on what their sum does to the model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import AtelierError
from ...core.files import digest, digest_of
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.record import Lora
from ...core.options import flat, leaves, parse, read_toml
from ..cache import Cache
from ..config import TrainOptions
from ..distil import Lesson, LoraTeacher, errors_of
from ..memory import Setting
from ..models import shape_in
from ..run import Run
from ..session import Extras
from ..world import World, local_device
from .dataset import record_at
from .train import Given, add_model, device_of, model_files, train_folder


def add_distil(parser) -> None:
    from ..cli import add_options

    parser.add_argument("dataset", type=Path, help="dataset file or folder: pictures and captions to compare on")
    parser.add_argument("loras", nargs="+", help="files, each with its weight: style.safetensors=0.8")
    parser.add_argument("--blocks", default="", help="block weights, such as single.0-9=0.5; lora0: before one LoRA's")
    parser.add_argument("--run", type=Path, default=Path("runs/distilled"), help="run folder; an existing one goes on")
    parser.add_argument("--config", help="TOML file with options; flags win over it")
    parser.add_argument("--cache", type=Path, help="folder of latents and text states (default: beside the run)")
    add_model(parser)
    add_options(parser, TrainOptions)


@dataclass(frozen=True)
class Taught(Given):
    """A training whose velocities come from LoRAs and not from the pictures."""

    lesson: Lesson = field(default_factory=lambda: Lesson(()))
    sources: str = ""

    def extras(self, setting: Setting, world: World) -> Extras:
        begun = Extras(begin=self.lesson.sum.modules, setting=setting, world=world)
        return replace(begun, teacher=LoraTeacher(self.lesson.sum))

    @property
    def fingerprints(self) -> tuple[str, str, str]:
        pictures, model, _ = super().fingerprints
        return pictures, model, self.sources


def run_distil(args) -> Iterator[str]:
    files, device = model_files(args), local_device(device_of(args))
    named = [read_weighted(word) for word in args.loras]
    loras: list[tuple[str, float, Lora]] = [(path.stem, weight, read_lora(path)) for path, weight in named]
    lesson = Lesson(loras, args.blocks)
    values = flat(parse(TrainOptions, read_toml(Path(args.config)), args.config)) if args.config else {}
    values |= {name: value for name, value in vars(args).items() if name in leaves(TrainOptions)}
    options = lesson.options(values, shape_in(files.transformer), args.config or "the command line")
    sources = digest_of("distil", [[digest(path), weight] for path, weight in named], args.blocks)
    cache = Cache(args.cache or args.run.parent / "cache")
    given = Taught(
        record_at(args.dataset), files, args.run, options, cache, device, lesson=lesson, sources=sources
    )  # fmt: skip
    run = Run(args.run, args.run.name)
    try:
        yield from train_folder(given)
    finally:
        if run.lora_file.is_file() and os.environ.get("RANK", "0") == "0":
            lora = read_lora(run.lora_file)
            write_lora(run.lora_file, replace(lora, metadata=lesson.header(lora.metadata, options)))
    errors = errors_of(run, options.result)
    if errors:
        yield errors.line()


def read_weighted(word: str) -> tuple[Path, float]:
    """A file and its weight out of file=0.8; raises AtelierError for a weight that is no number."""
    name, sign, weight = word.rpartition("=")
    try:
        return (Path(name), float(weight)) if sign else (Path(word), 1.0)
    except ValueError:
        raise AtelierError(f"{word} has the weight {weight!r}, which is no number. Write file=0.8.") from None


COMMANDS = {"distil": ("Distil LoRAs into one of a chosen rank, by training on their sum.", add_distil, run_distil)}

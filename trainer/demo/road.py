"""The whole road on nano-flux: curate, caption, train, compare, merge, stylise, interpolate, and one page of it.

Each stage is a generator of lines to show and adds its part to the page.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch

from ...core.dataset.contact_sheet import contact_sheet
from ...core.dataset.curate import CurateOptions, curate, ended
from ...core.dataset.folder import load_folder, open_picture
from ...core.dataset.opening import open_dataset
from ...core.dataset.record import Dataset
from ...core.dataset.templates import fill_captions
from ...core.evaluation.grid import picture_grid
from ...core.evaluation.style_figure import describe, describe_files, style_position
from ...core.files import write_json
from ...core.frames.interpolate import blend, flow_between, interpolate
from ...core.frames.video import write_video
from ...core.images import save_picture, to_picture, to_tensor
from ...core.lora.formats import read_lora, write_lora
from ...core.lora.merge import merge
from ...core.lora.record import Lora
from ...core.options import parse
from ...core.style.color import transfer_color
from ..cache import Cache
from ..commands.train import Given, train_folder
from ..config import TrainOptions
from ..draw import flux_pipeline, stylise
from ..models import nano
from ..nano import measure, scenes
from ..nano.practice import write_scenes
from ..report import run_curves
from ..run import Run
from . import pictures
from .page import Page

STYLE_OPTIONS = {
    "steps": 700, "validate_every": 100, "save_every": 100, "gradient_checkpointing": 0.0,
    "adapter": {"rank": 16, "alpha": 16.0, "targets": "attention+mlp"},
    "optimizer": {"learning_rate": 1e-3, "warmup": 20},
    "objective": {"shift": "none", "caption_dropout": 0.0},  # strokes are learned at low noise
    "data": {"resolution": 64, "batch_size": 16},
}  # fmt: skip
SHOWN = 8  # prompts in a grid
JUDGED = 30  # prompts a seed in the figures
JUDGED_SIZES = ("medium", "large")  # a brush stroke is as wide as a small shape
PAINTINGS = 400
SEEDS = (1, 2, 3)


@dataclass
class Road:
    """Where the demo writes, and what its stages hand on."""

    out: Path
    own: Path | None
    page: Page = field(default_factory=lambda: Page("Flux Atelier: the road"))
    loras: dict[str, Lora] = field(default_factory=dict)
    style: Dataset | None = None

    def walk(self) -> Iterator[str]:
        """Every stage in order; the page is written at the end."""
        started = time.monotonic()
        for stage in (self.curate, self.learn, self.compare, self.merge, self.restyle, self.smooth):
            began = time.monotonic()
            yield f"== {stage.__name__}"
            yield from stage()
            yield f"   {time.monotonic() - began:.0f} s"
        self.page.table({"whole road": f"{time.monotonic() - started:.0f} s"})
        write_json(self.out / "figures.json", self.page.figures)
        yield f"open {self.page.write(self.out / 'index.html')}"

    def curate(self) -> Iterator[str]:
        folder = self.own or pictures.write_photographs(self.out / "photographs")
        view = ended(curate(ended(open_dataset(folder, self.out / "dataset")), CurateOptions()))
        dataset = view.dataset()
        self.page.section("Curate", view.summary())
        self.page.picture(contact_sheet(view), "Green frames stay; red frames are left out, with the reason.")
        rejected = {r.path: r.rejected.reason for r in dataset.rows if r.rejected}
        self.page.table(rejected | {s.path: f"unreadable: {s.reason}" for s in dataset.skipped})
        if self.own:
            self.style = fill_captions(view, "a picture of {name}").dataset()
        yield view.summary()

    def learn(self) -> Iterator[str]:
        self.page.section("Train", "Two LoRAs on nano-flux: the style, and a second one to merge with it.")
        painted = self.style or load_folder(
            write_scenes(self.out / "painted", "painted", PAINTINGS, seed=7), validation=12
        )
        self.style = painted
        yield from self._train("style", painted, {})
        dusk = load_folder(write_scenes(self.out / "dusk", "dusk", 48, seed=11))
        yield from self._train("dusk", dusk, {"steps": 250})

    def _train(self, name: str, dataset: Dataset, changes: dict) -> Iterator[str]:
        options = parse(TrainOptions, STYLE_OPTIONS | changes, "the demo")
        folder = self.out / "runs" / name
        began = time.monotonic()
        yield from train_folder(Given(dataset, nano(), folder, options, Cache(self.out / "cache"), torch.device("cpu")))
        run = Run(folder, name)
        self.loras[name] = read_lora(run.lora_file)
        self.page.picture(run_curves(run), f"{name}: {options.steps} steps in {time.monotonic() - began:.0f} s")
        validation = [r["validation"] for r in run.metrics() if r.get("validation") is not None]
        self.page.table({f"{name}: validation loss": f"{validation[0]:.4f} to {validation[-1]:.4f}"})

    def compare(self) -> Iterator[str]:
        target = describe_files(self._style_files(), (scenes.SIDE, scenes.SIDE))
        figures: dict[str, str] = {}
        for seed in SEEDS:
            chosen, base = measure.draw_held_out(JUDGED, seed, sizes=JUDGED_SIZES)
            _, styled = measure.draw_held_out(JUDGED, seed, self.loras["style"], JUDGED_SIZES)
            moved = style_position(describe(styled), describe(base), target).mean().item()
            content = measure.content_share(chosen, styled), measure.content_share(chosen, base)
            figures[f"seed {seed}: style figure with the LoRA (base 0, target 1)"] = f"{moved:.3f}"
            figures[f"seed {seed}: content right with the LoRA"] = f"{content[0]:.0%} (base {content[1]:.0%})"
            if seed == SEEDS[0]:
                lines = [[to_picture(p) for p in part[:SHOWN]] for part in (base, styled)]
                grid = picture_grid(lines, ["base", "LoRA"], [s.caption for s in chosen[:SHOWN]], 112)
        self.page.section(
            "Compare", "The same prompts and seeds, without and with the LoRA; none was in any training set."
        )
        self.page.picture(grid, "base above, LoRA below")
        self.page.table(figures)
        yield from (f"{k}: {v}" for k, v in figures.items())

    def _style_files(self) -> list[Path]:
        return [self.style.file(r) for r in self.style.kept]

    def merge(self) -> Iterator[str]:
        merged = merge([("style", 0.8, self.loras["style"]), ("dusk", 0.6, self.loras["dusk"])], rank=16)
        write_lora(self.out / "merged.safetensors", merged.lora)
        lines = []
        for lora in (None, self.loras["style"], self.loras["dusk"], merged.lora):
            chosen, drawn = measure.draw_held_out(SHOWN, SEEDS[0], lora)
            lines.append([to_picture(p) for p in drawn])
        self.page.section("Merge", "0.8 of the style and 0.6 of the dusk, added exactly and re-compressed to rank 16.")
        self.page.picture(
            picture_grid(lines, ["base", "style", "dusk", "merged"], [s.caption for s in chosen], 112), ""
        )
        self.page.table({"energy of the sum kept at rank 16": f"{merged.kept:.2%}"})
        yield f"merged.safetensors: {merged.kept:.2%} of the energy at rank 16"

    def restyle(self) -> Iterator[str]:
        chosen = scenes.draw_prompts(SHOWN, 21, held_out=True)
        plain = [to_picture(p) for p in scenes.draw(chosen, 5)]
        pipe = flux_pipeline(nano(), measure.encoder(), self.loras["style"], 1.0)
        drawn = stylise(pipe, plain, [s.caption for s in chosen], 0.7, 24, 0, nano().t5_length)
        reference = to_tensor(open_picture(self._style_files()[0]))
        colored = transfer_color(torch.stack([to_tensor(p) for p in drawn]), reference)
        lines = [plain, drawn, [to_picture(p) for p in colored]]
        self.page.section(
            "Stylise", "Pictures drawn again from their own layout by a diffusers pipeline with the LoRA."
        )
        grid = picture_grid(lines, ["picture", "stylised", "colours of the first"], [s.caption for s in chosen], 112)
        self.page.picture(grid, "")
        for i, picture in enumerate(drawn):
            save_picture(self.out / "stylised" / f"{i}.png", picture)
        yield f"{len(drawn)} pictures stylised"

    def smooth(self) -> Iterator[str]:
        whole = pictures.moving_clip(41)
        kept, truth = whole[::4], whole
        errors = {}
        for name, between in (("blend", blend), ("flow", flow_between())):
            made = torch.stack(list(interpolate(kept, 4, between)))
            wanted = [i for i in range(len(whole)) if i % 4]
            mse = (made[wanted] - truth[wanted]).square().flatten(1).mean(1)
            errors[f"in-between frames by {name}"] = f"{(-10 * mse.log10()).mean().item():.1f} dB"
        clip = self.out / "clip.mp4"
        count = write_video(clip, interpolate(kept, 4, flow_between()), Fraction(24))
        self.page.section("Interpolate", f"{len(kept)} frames become {count}: 6 a second become 24, by optical flow.")
        self.page.clip(clip, "a photograph under a pan and turn; three of four frames are made")
        self.page.table(errors)
        yield from (f"{k}: {v}" for k, v in errors.items())

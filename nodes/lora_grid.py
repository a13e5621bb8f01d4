"""The test bench: pictures over LoRAs, strengths, blocks, prompts and seeds, each drawn once and kept."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.evaluation import cells as bench
from ..core.evaluation.cells import Axis, Cell, CellStore, Patch, Settings
from ..core.evaluation.sheet import Labels, sheets
from ..core.files import digest, digest_tensors, read_tensors, write_json
from ..core.images import save_picture, to_image
from ..core.lora.blocks import apply_weights, check_weights, parse_weights
from ..core.lora.formats import read_lora
from ..core.lora.inspection import inspect_lora
from ..core.lora.record import Base
from . import host, types
from .analysis import check_size
from .host.cells import Painter, sampler_names, scheduler_names, with_lora_named
from .loras import CATEGORY
from .widgets import drawing_inputs
from .wire import LoraTensors, from_wire, to_wire

AXES = ("x", "y", "z")
SOCKET = re.compile(r"lora\d+")


def axis_inputs() -> list:
    """Kind and values of each axis."""
    inputs, defaults = [], {"x": ("strength", "0..1 step 0.5"), "y": ("prompt", ""), "z": ("none", "")}
    for axis, side in zip(AXES, ("columns", "rows", "pages"), strict=True):
        kind, values = defaults[axis]
        inputs += [
            io.Combo.Input(
                f"{axis}_axis", options=list(bench.KINDS), default=kind, tooltip=f"What changes over the {side}."
            ),
            io.String.Input(
                f"{axis}_values",
                default=values,
                multiline=True,
                tooltip=f"Values of the {side}, one a line; numbers also by commas or as a range, 0..1 step 0.25. "
                "Empty takes the connected LoRAs for lora, and prompts for prompt.",
            ),
        ]
    return inputs


def picture_inputs() -> list:
    """What every picture is drawn with, unless an axis changes it."""
    return [
        io.String.Input(
            "prompts", default="", multiline=True, tooltip="One prompt a line; several need a prompt axis."
        ),
        io.Float.Input("strength", default=1.0, min=-20.0, max=20.0, step=0.05, tooltip="Strength of the LoRAs."),
        io.String.Input(
            "blocks",
            default="",
            multiline=True,
            tooltip="Block weights of the LoRAs, such as single.0-9 = 0.5; empty is 1 everywhere.",
        ),
        *drawing_inputs("Seed of every picture, so that only what the axes say differs.", most=1000, side=1024),
        io.Combo.Input("sampler", options=sampler_names(), default="euler", tooltip="ComfyUI's sampler."),
        io.Combo.Input("scheduler", options=scheduler_names(), default="simple", tooltip="ComfyUI's schedule."),
        io.String.Input(
            "name", default="grid", tooltip="Name of the sheet and its table in output/flux_atelier/grids."
        ),
    ]


class LoraGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        lora = io.Autogrow.TemplatePrefix(
            types.LoraModel.Input("lora", tooltip="A LoRA to try."), prefix="lora", min=0, max=types.MOST_LORAS
        )
        return io.Schema(
            node_id="FluxAtelierLoraGrid",
            display_name="LoRA Grid",
            category=CATEGORY,
            description="Draw pictures over up to three axes: LoRAs, strengths, blocks, prompts, seeds, guidance, steps. "
            "Each is drawn once and kept; a cancelled grid goes on where it stopped.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the LoRAs."),
                io.Clip.Input("clip", tooltip="The CLIP; LoRAs change the model only."),
                io.Vae.Input("vae", tooltip="The VAE."),
                io.Autogrow.Input("loras", template=lora, tooltip="LoRAs, called lora0, lora1 ... in the values."),
                *axis_inputs(),
                *picture_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.Image.Output(display_name="pictures"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, name=None, x_axis=None, x_values=None, y_axis=None, y_values=None, z_axis=None, z_values=None, prompts=None, blocks=None,
        loras=None, width=None, height=None,
    ):  # fmt: skip
        named = host.told(grid_file, name)
        if named is True:
            named = host.told(lambda sides: check_size(**sides), dict(width=width, height=height))
        given = {
            "x_axis": x_axis, "x_values": x_values, "y_axis": y_axis, "y_values": y_values, "z_axis": z_axis,
            "z_values": z_values, "prompts": prompts, "blocks": blocks,
        }  # fmt: skip
        linked = None in given.values()
        return (
            named
            if named is not True or linked
            else host.told(read_grid, given, None if loras is None else list(loras))
        )

    @classmethod
    def fingerprint_inputs(cls, **given):
        """Files that are named in a text may change without any input changing."""
        try:
            found = read_grid(given)[1]
            names = sorted({name for cell in found for name in names_in(cell) if not SOCKET.fullmatch(name)})
            facts = [file_of(name).stat() for name in names]
        except (AtelierError, KeyError, AttributeError):
            return ""  # what is wrong, or comes by wire, is told when the node runs
        return [[fact.st_mtime_ns, fact.st_size] for fact in facts]

    @classmethod
    def execute(cls, model, clip, vae, loras: dict | None = None, **values) -> io.NodeOutput:
        sockets = {name: tensors for name, tensors in (loras or {}).items() if tensors is not None}
        path = grid_file(values["name"])
        check_size(width=values["width"], height=values["height"])
        painter = Painter(clip, vae, *(values[k] for k in ("width", "height", "sampler", "scheduler")))
        axes, cells = read_grid(values, list(sockets))
        with torch.inference_mode(False):
            shelf = Shelf(sockets, {name for cell in cells for name in names_in(cell)})
            plan = Plan.of(axes, cells, shelf, painter.common(model))
            shelf.check(patch for patches in plan.patches for patch in patches)
        drawing = Drawing(plan, shelf, model, painter)
        try:
            drawing.draw(host.Progress(len(set(plan.keys)), cls.hidden.unique_id))
        finally:  # a cancelled grid leaves a sheet of what there is
            pages = drawing.write(path)
        images = torch.cat([to_image(page) for page in pages])
        return io.NodeOutput(images, drawing.batch(), drawing.report(path), ui=ui.PreviewImage(images, cls=cls))


def grid_file(name: str) -> Path:
    """Where a grid's table goes: output/flux_atelier/grids/<name>.json, its sheets beside it."""
    if not name.strip(" ."):
        raise AtelierError(f"The name is {name!r}. Give the grid a name.")
    return host.inside(host.output_folder("flux_atelier", "grids"), f"{name.strip()}.json")


def file_of(name: str) -> Path:
    """A LoRA file in ComfyUI's folders, with or without its ending; raises AtelierError if there is none."""
    return host.lora_path(name if name in host.lora_names() else f"{name.removesuffix('.safetensors')}.safetensors")


def names_in(cell: Cell) -> list[str]:
    return [name for name, _ in bench.read_loras(cell.settings.lora)]


def read_grid(values: dict, sockets: Sequence[str] | None = None) -> tuple[tuple[Axis, ...], tuple[Cell, ...]]:
    """The axes and cells of a grid from the node's inputs.

    sockets  names of the connected LoRAs; None before they are known
    Raises AtelierError for what cannot be read or named, and for axes that would change nothing.
    """
    kinds = [values[f"{axis}_axis"] for axis in AXES]
    lines = [line.strip() for line in values["prompts"].splitlines() if line.strip()]
    connected = ["lora0"] if sockets is None else sockets
    texts = [values[f"{axis}_values"] for axis in AXES]
    axes = bench.read_axes(kinds, texts, {"lora": connected, "prompt": lines})
    if "prompt" not in kinds and len(lines) != 1:
        found = f"{len(lines)} prompts" if lines else "no prompt"
        raise AtelierError(f"The grid has {found} and no axis is prompt. Set an axis to prompt, or write one prompt.")
    common = {k: values[k] for k in ("strength", "blocks", "seed", "guidance", "steps") if k in values}
    base = Settings(lora=" + ".join(connected), prompt=lines[0] if lines else "", **common)
    cells = bench.cells_of(axes, base)
    names = {name for cell in cells for name in names_in(cell)}
    for kind in ("strength", "blocks"):
        if kind in kinds and not names:
            raise AtelierError(f"An axis is {kind}, but there is no LoRA. Connect one, or name a file on a lora axis.")
    for name in sorted(names):
        if not SOCKET.fullmatch(name):
            file_of(name)
        elif sockets is not None and name not in sockets:
            raise AtelierError(
                f"The grid names {name}, but the connected LoRAs are {', '.join(sockets) or 'none'}. "
                "Connect it, or take its name out of the values."
            )
    for text in {cell.settings.blocks for cell in cells}:
        check_weights(text)
    return axes, cells


def opened(name: str) -> dict[str, Tensor]:
    """A LoRA file; what ComfyUI's own loaders would read wrong in the layout that they read right."""
    tensors, metadata = read_tensors(file_of(name))
    seen = inspect_lora(tensors, metadata, name)
    return LoraTensors(tensors, metadata) if seen.right_in_comfyui else to_wire(seen.lora)


class Shelf:
    """The LoRAs of a grid by name: those on sockets, and files that are opened when they are needed."""

    def __init__(self, sockets: dict[str, dict[str, Tensor]], names: set[str]):
        self.sockets = sockets
        self.digests = {
            name: digest_tensors(sockets[name]) if name in sockets else digest(file_of(name)) for name in names
        }

    def name(self, digest: str) -> str:
        return next(name for name, known in self.digests.items() if known == digest)

    def check(self, patches: Iterable[Patch]) -> None:
        """Raise AtelierError for block weights that name what a LoRA's own kind of model has not."""
        bases: dict[str, Base] = {}
        for patch in dict.fromkeys(p for p in patches if p.blocks):
            if patch.digest not in bases:
                name = self.name(patch.digest)
                lora = from_wire(self.sockets[name], name) if name in self.sockets else read_lora(file_of(name))
                bases[patch.digest] = lora.base
            parse_weights(patch.blocks, bases[patch.digest])

    def tensors(self, patch: Patch) -> dict[str, Tensor]:
        """A LoRA's tensors with its block weights; nothing where they leave nothing of it."""
        name = self.name(patch.digest)
        given = self.sockets[name] if name in self.sockets else opened(name)
        if not patch.blocks:
            return given
        lora = from_wire(given, name)
        weights = parse_weights(patch.blocks, lora.base)
        if not any(weights.of(layer) for layer in (*lora.modules, *lora.vectors)):
            return {}
        return to_wire(apply_weights(lora, weights))

    @torch.inference_mode(False)
    def patched(self, model, patches: Sequence[Patch]):
        """A MODEL with LoRAs laid on it."""
        for patch in patches:
            tensors = self.tensors(patch)
            model = with_lora_named(model, tensors, patch.strength, self.name(patch.digest)) if tensors else model
        return model


@dataclass(frozen=True)
class Plan:
    """A grid before it is drawn; keys and patches stand beside the cells."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    patches: tuple[tuple[Patch, ...], ...]
    common: dict[str, str | int]

    @classmethod
    def of(cls, axes, cells: tuple[Cell, ...], shelf: Shelf, common: dict[str, str | int]) -> "Plan":
        patches = tuple(bench.patches_of(cell.settings, shelf.digests) for cell in cells)
        keys = tuple(bench.cell_key(c.settings, p, common) for c, p in zip(cells, patches, strict=True))
        return cls(axes, cells, keys, patches, common)

    def order(self, missing: set[str]) -> list[int]:
        """One cell for each missing key, those with the same LoRAs and strengths together: patching takes seconds."""
        groups = {patches: n for n, patches in reversed(list(enumerate(self.patches)))}
        firsts = {key: n for n, key in reversed(list(enumerate(self.keys))) if key in missing}
        return sorted(firsts.values(), key=lambda n: (groups[self.patches[n]], n))

    def table(self, store: CellStore, drawn: set[str], files: Sequence[Path]) -> dict:
        """The grid as plain values, for its JSON file."""
        labels = [axis.labels() for axis in self.axes]
        return {
            "axes": [{**asdict(axis), "labels": told} for axis, told in zip(self.axes, labels, strict=True)],
            "common": self.common,
            "sheets": [path.name for path in files],
            "cells": [
                {
                    "x": c.x, "y": c.y, "z": c.z, "labels": [labels[0][c.x], labels[1][c.y], labels[2][c.z]],
                    "key": key, "file": str(store.file(key)) if key in drawn else None, "settings": asdict(c.settings),
                }
                for c, key in zip(self.cells, self.keys, strict=True)
            ],
        }  # fmt: skip


class Drawing:
    """A grid while it is drawn: its pictures by key, most of them perhaps from the disk."""

    def __init__(self, plan: Plan, shelf: Shelf, model: Any, painter: Painter):
        self.plan, self.shelf, self.model, self.painter = plan, shelf, model, painter
        self.store = CellStore(host.output_folder("flux_atelier", "cells"))
        found = {key: self.store.get(key) for key in dict.fromkeys(plan.keys)}
        self.pictures: dict[str, Image.Image] = {key: picture for key, picture in found.items() if picture}
        self.cached, self.seconds = len(self.pictures), 0.0

    def draw(self, progress: host.Progress) -> None:
        """Draw what is missing, keeping each picture as soon as it is there."""
        began, plan = time.perf_counter(), self.plan
        order = plan.order(set(plan.keys) - set(self.pictures))
        texts = {prompt: self.painter.encode(prompt) for prompt in {plan.cells[n].settings.prompt: 0 for n in order}}
        laid: tuple[tuple[Patch, ...], Any] | None = None
        for n in order:
            if laid is None or laid[0] != plan.patches[n]:
                laid = plan.patches[n], self.shelf.patched(self.model, plan.patches[n])
            chosen = plan.cells[n].settings
            picture = self.painter.draw(laid[1], texts[chosen.prompt], chosen)
            self.store.put(plan.keys[n], picture)
            self.pictures[plan.keys[n]] = picture
            self.seconds = time.perf_counter() - began
            progress.at(len(self.pictures), picture)

    def write(self, path: Path) -> list[Image.Image]:
        """Write the sheets and the table; gives the sheets. Nothing is written while there is no picture."""
        if not self.pictures:
            return []
        plan = self.plan
        columns, rows, pages = (axis.labels() for axis in plan.axes)
        keys = iter(plan.keys)
        pictures = [[[self.pictures.get(next(keys)) for _ in columns] for _ in rows] for _ in pages]
        made = sheets(pictures, Labels(columns, rows, pages))
        files = [path.with_name(f"{path.stem}{f'-{z + 1}' if len(pages) > 1 else ''}.png") for z in range(len(pages))]
        for file, sheet in zip(files, made, strict=True):
            save_picture(file, sheet)
        write_json(path, plan.table(self.store, set(self.pictures), files))
        return made

    def batch(self) -> Tensor:
        """All pictures as IMAGE, [cells, H, W, 3], in the order of the table."""
        first = to_image(self.pictures[self.plan.keys[0]])
        out = torch.empty(len(self.plan.keys), *first.shape[1:])
        for n, key in enumerate(self.plan.keys):
            out[n] = to_image(self.pictures[key])[0]
        return out

    def report(self, path: Path) -> str:
        """What was drawn, and where it lies."""
        drawn = len(self.pictures) - self.cached
        took = f" in {self.seconds:.1f} s" if drawn else ""
        return (
            f"{counted(len(self.plan.cells), 'cell')}: {drawn} drawn now{took}, {self.cached} were there\n"
            f"sheets and table: {path}\npictures: {self.store.folder}"
        )


NODES = [LoraGrid]

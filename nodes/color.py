"""Colours of pictures: taken from a reference, shot by shot, and kept as lookup tables that editors and players read."""

import os
from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.errors import AtelierError
from ..core.frames.cuts import Change, change_between, thumbnail
from ..core.frames.interpolate import clean
from ..core.style.color import SIZES, ColorOptions, Method, Still, apply_map, fit_map, tabulate, transfer_shots
from ..core.style.lut import read_cube, write_cube
from . import host
from .widgets import inputs_of
from .written import remember, removals

CATEGORY = "Flux Atelier/Style"
SHOTS = ("one map", "each shot")
ENDING = ".cube"


def planes(images: Tensor) -> Tensor:
    """IMAGE as [B, 3, H, W], without alpha; grey becomes three alike."""
    colors = images[..., :3] if images.shape[-1] > 2 else images[..., :1].expand(-1, -1, -1, 3)
    return colors.permute(0, 3, 1, 2)


def with_planes(images: Tensor, drawn: Tensor) -> Tensor:
    """IMAGE with other colours, [B, 3, H, W], and the alpha that it had."""
    colors, alpha = drawn.permute(0, 2, 3, 1), images.shape[-1] in (2, 4)
    return torch.cat([colors, images[..., -1:]], -1) if alpha else colors.contiguous()


def masks_of(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """MASK as [B, 1, H, W] in 0..1 for pictures, scaled to their size as ComfyUI's own nodes do.

    Raises AtelierError for another number of masks than one, or one each.
    """
    if mask is None:
        return None
    if len(mask) not in (1, len(images)):
        raise AtelierError(
            f"There are {len(mask)} masks for {len(images)} pictures. Give one mask, or one for each picture."
        )
    rows, size = mask[:, None].float().to(images.device), tuple(images.shape[1:3])
    if tuple(rows.shape[-2:]) != size:
        rows = torch.nn.functional.interpolate(rows, size, mode="bilinear")
    return rows.clamp(0, 1).expand(len(images), -1, -1, -1)


def cuts_in(images: Tensor) -> list[int]:
    """Numbers of the frames of a batch that begin a new shot."""
    cuts, before = [], None
    for number, frame in enumerate(planes(images)):
        host.check_cancel()
        thumb = thumbnail(clean(frame))
        if before is not None and change_between(before, thumb) is Change.CUT:
            cuts.append(number)
        before = thumb
    return cuts


def counting(total: int, node_id: str | None):
    """A function that moves the node's bar by one and notices a cancel."""
    progress, done = host.Progress(total, node_id), 0

    def seen() -> None:
        nonlocal done
        done += 1
        progress.at(done)

    return seen


class TransferColor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierTransferColor",
            display_name="Transfer Colour",
            category=CATEGORY,
            description="Give pictures the palette of a reference; one map for the batch or for each shot, so clips do not flicker.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The pictures, or the frames of a clip in order."),
                io.Image.Input(
                    "reference", tooltip="The picture with the wanted colours; the first of a batch counts."
                ),
                *inputs_of(ColorOptions, ["strength"]),
                *inputs_of(ColorOptions, ["method"], optional=True),
                io.Combo.Input(
                    "shots",
                    options=list(SHOTS),
                    default=SHOTS[0],
                    optional=True,
                    tooltip="one map: for the whole batch; each shot: a map of its own after every cut that is found.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where colours are measured and changed: white is, black is not, grey in part; one, or one each.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, images, reference, strength, method: Method = "mkl", shots=SHOTS[0], mask=None) -> io.NodeOutput:
        options = ColorOptions(method=method, strength=strength)
        where = masks_of(mask, images)
        if not strength:
            return io.NodeOutput(images)
        cuts = cuts_in(images) if shots == "each shot" else []
        seen = counting(2 * len(images), cls.hidden.unique_id)
        moved = transfer_shots(planes(images), planes(reference[:1]), options, cuts, where, seen)
        found = {"text": [f"{len(cuts) + 1} shots"]} if cuts else None
        return io.NodeOutput(with_planes(images, moved), ui=found)


class SaveColorMap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierSaveColorMap",
            display_name="Save Colour Map",
            category=CATEGORY,
            description="Write the map from pictures' colours to a reference's as a .cube table, for editors, players and Apply Colour Map.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input(
                    "images", tooltip="Pictures with the colours to change; one map is made for all of them."
                ),
                io.Image.Input(
                    "reference", tooltip="The picture with the wanted colours; the first of a batch counts."
                ),
                *inputs_of(ColorOptions),
                io.Int.Input(
                    "size",
                    default=33,
                    min=SIZES[0],
                    max=65,  # writing a finer one takes seconds that no cancel can stop
                    tooltip="Entries along each side of the table; 33 is what most programs expect, 65 is finer.",
                ),
                io.String.Input(
                    "name",
                    default="look",
                    tooltip="Name of the file in output/flux_atelier/luts; an old one is replaced.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images"), io.String.Output(display_name="file")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return host.told(map_to_write, name)

    @classmethod
    def fingerprint_inputs(cls, **_):
        """A file that was removed is made again."""
        return removals()

    @classmethod
    def execute(cls, images, reference, method, strength, size, name) -> io.NodeOutput:
        path, pictures = map_to_write(name), planes(images)
        seen = counting(2 * len(images), cls.hidden.unique_id)
        fitted = fit_map(pictures, planes(reference[:1]), method, seen=seen)
        table = tabulate(fitted, size, strength)
        moved = with_planes(images, apply_map(table, pictures, seen=seen))
        remember(write_cube(path, table, path.stem))
        told = f"{path.name}: {size} x {size} x {size} entries"
        if isinstance(fitted, Still):
            told += "; it changes nothing, because the pictures or the reference are flat"
        return io.NodeOutput(moved, str(path), ui={"text": [told]})


class ApplyColorMap(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierApplyColorMap",
            display_name="Apply Colour Map",
            category=CATEGORY,
            description="Change the colours of pictures by a .cube table, from Save Colour Map or from any colour program.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The pictures."),
                io.String.Input(
                    "file",
                    default="look.cube",
                    tooltip="A .cube file: its name in output/flux_atelier/luts or in the input or output folder, or its whole path in one of them.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="0 leaves the pictures, 1 applies the table fully.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where colours are changed: white is, black is not, grey in part; one, or one for each picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def fingerprint_inputs(cls, strength, file=None, **inputs):  # noqa: ARG003
        if file is None:  # it comes by wire
            return None
        facts = map_to_read(file).stat()
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def validate_inputs(cls, file=None):
        return host.told(map_to_read, file)

    @classmethod
    def execute(cls, images, file, strength, mask=None) -> io.NodeOutput:
        table, where = read_cube(map_to_read(file)), masks_of(mask, images)
        seen = counting(len(images), cls.hidden.unique_id)
        return io.NodeOutput(with_planes(images, apply_map(table, planes(images), strength, where, seen)))


def maps_folder() -> Path:
    """Where colour maps are written: output/flux_atelier/luts."""
    return host.output_folder("flux_atelier", "luts")


def map_to_write(name: str) -> Path:
    """The file of a colour map by its name, with the ending or without; raises AtelierError for one that leads elsewhere."""
    name = name.strip()
    stem = name[: -len(ENDING)] if name.lower().endswith(ENDING) else name
    if not stem.strip(" ./\\"):
        raise AtelierError(f"The name is {name!r}. Give the colour map a name.")
    return host.inside(maps_folder(), f"{stem}{ENDING}")


def map_to_read(name: str) -> Path:
    """Find a colour map by its name in the folders that may hold one, or by a whole path inside one of them.

    Raises AtelierError that lists where it looked.
    """
    name = name.strip()
    if not name:
        raise AtelierError("The file is empty. Give the name of a .cube file, such as one of Save Colour Map.")
    name = name if name.lower().endswith(ENDING) else f"{name}{ENDING}"
    roots = [maps_folder(), *host.picture_roots()]
    for root in roots:
        path = Path(os.path.abspath(root / name))
        if path.is_relative_to(os.path.abspath(root)) and path.is_file():
            return path
    places = ", ".join(str(r) for r in roots)
    raise AtelierError(f"There is no colour map {name} below {places}. Put the .cube file into one of them.")


NODES = [TransferColor, SaveColorMap, ApplyColorMap]

"""A LoRA's figures as one HTML page with everything in it, readable without a network, and as files beside it."""

import base64
import html
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..errors import AtelierError
from ..files import write_json, write_text
from ..flux.checkpoint import Weights
from ..images import save_picture
from ..lora.directions import Direction, ranked
from ..lora.extract import refuse_misfit
from ..lora.kinds import Layer
from ..lora.record import Layers, Lora
from ..lora.spectrum import Spectrum, measure
from .lora_plots import Scale, heat_map, spectra_picture

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #282828; background: #faf9f6; margin: 2em auto; padding: 0 1em }
h1, h2 { font-weight: 600; line-height: 1.2; overflow-wrap: anywhere } h2 { margin-top: 2em }
p, dl { max-width: 70em } p { overflow-wrap: anywhere } dt { font-weight: 600 } dd { margin: 0 0 .4em }
img { max-width: 100%; border: 1px solid #d6d3cc } table { border-collapse: collapse; font-size: 14px }
td, th { padding: 4px 16px 4px 0; text-align: left; vertical-align: bottom; border-bottom: 1px solid #d6d3cc }
td { vertical-align: top; overflow-wrap: break-word } .number { text-align: right; font-variant-numeric: tabular-nums }
td.number { white-space: nowrap } .warn { color: #a04010 }
.wide { overflow-x: auto; background:
 linear-gradient(to right, #faf9f6 40%, transparent) left / 40px 100% no-repeat local,
 linear-gradient(to left, #faf9f6 40%, transparent) right / 40px 100% no-repeat local,
 linear-gradient(to right, #0004, transparent) left / 14px 100% no-repeat scroll,
 linear-gradient(to left, #0004, transparent) right / 14px 100% no-repeat scroll }
"""
NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?%?|-?inf|nan")
WORDS = {
    "stable rank": "The layer's energy (the sum of its squared singular values) over that of its first direction: 1 "
    "means that one direction is all of it.",
    "effective rank": "How many directions count, from the entropy of the singular values; as many as the rank when all "
    "are equal.",
    "share": "The layer's part of the energy of the whole LoRA.",
    "relative to the base": "The norm of the change over the norm of the base model's weight; empty where the base model "
    "was not given or has no such layer.",
}
MOST = 30  # directions and blocks in a table; the files have all
TITLES = {
    "module": "layer", "kind": "kind", "rank": "rank", "frobenius": "norm", "spectral": "first singular value",
    "stable_rank": "stable rank", "effective_rank": "effective rank", "first_share": "first direction",
    "rank_90": "rank for 90%", "rank_99": "rank for 99%", "share": "share", "relative": "relative to the base",
}  # fmt: skip
SHARES = ("first_share", "share", "relative")


@dataclass(frozen=True)
class Study:
    """A LoRA's name and figures."""

    name: str
    spectrum: Spectrum

    @property
    def directions(self) -> list[Direction]:
        """Every singular direction of every layer, the strongest first."""
        return ranked({layer.module: layer.sigma for layer in self.spectrum.layers})

    @property
    def values(self) -> dict[str, float]:
        """What the heat map shows of each layer: the norm relative to the base model's where that is known, else the norm."""
        layers = self.spectrum.layers
        if all(layer.relative is not None for layer in layers):
            return {layer.module: layer.relative or 0.0 for layer in layers}
        return {layer.module: layer.frobenius for layer in layers}

    def heat_map(self) -> Image.Image:
        relative = all(layer.relative is not None for layer in self.spectrum.layers)
        scale = Scale(name="of the weight's norm", digits=".2%") if relative else Scale(name="Frobenius norm")
        return heat_map(self.values, f"{self.name}: norm of the change" + " over the weight's" * relative, scale)

    def spectra(self) -> Image.Image:
        return spectra_picture(self.spectrum)

    def summary(self) -> dict[str, str]:
        """The whole LoRA in a few figures."""
        s = self.spectrum
        kinds = ", ".join(dict.fromkeys(layer.kind for layer in s.layers))
        loudest = max(s.layers, key=lambda layer: layer.energy)
        kept = {rank: s.kept(rank) for rank in (1, 4, 8, 16, 32) if rank <= max(len(la.sigma) for la in s.layers)}
        return {
            "layers": f"{len(s.layers)} ({kinds}), {len(s.vectors)} biases and norms",
            "norm of the whole change": f"{math.sqrt(s.energy):.4g}",
            "largest layer": f"{loudest.module} ({loudest.energy / s.energy if s.energy else 0:.2%} of the energy)",
            "energy kept at rank": ", ".join(f"{rank}: {share:.2%}" for rank, share in kept.items()),
            "mean effective rank": f"{sum(la.effective_rank for la in s.layers) / len(s.layers):.2f}",
            **{f"energy in {k}": f"{v / s.energy if s.energy else 0:.2%}" for k, v in s.components().items()},
        }

    def warnings(self) -> list[str]:
        return [
            f"{la.module}: one direction has {la.first_share:.2%} of the energy, and its singular value {la.spectral:.3g} "
            "is far above the other layers'. Such a LoRA may not go with others; lower this block's weight or take the "
            "direction out."
            for la in self.spectrum.spikes()
        ]

    def report(self) -> str:
        """Summary, strongest blocks and warnings as lines of text."""
        lines = [f"{key}: {value}" for key, value in self.summary().items()]
        blocks = sorted(self.spectrum.blocks().items(), key=lambda item: -item[1])[:8]
        energy = self.spectrum.energy or 1.0
        lines.append("strongest blocks: " + ", ".join(f"{block} {value / energy:.2%}" for block, value in blocks))
        return "\n".join([*lines, *(f"warning: {w}" for w in self.warnings())])


def study_of(name: str, lora: Lora, base: Weights | None = None, seen: Callable[[int], None] = lambda _: None) -> Study:
    """Measure a LoRA, relative to a base model where one is given.

    seen  called with the number of layers done
    Raises AtelierError if the base model has none of its layers, or one of another size, and as `measure` does.
    """
    return Study(name, measure(lora if base is None else _fitting(lora, base), base, seen))


def _fitting(lora: Lora, base: Weights) -> Lora:
    """The LoRA with layers that are held against the base model's sizes when they are asked for."""
    if lora.modules and not any(f"{module}.weight" in base.shapes for module in lora.modules):
        raise AtelierError(
            f"{base.name} has none of the LoRA's layers such as {next(iter(lora.modules))}. "
            "Choose the base model that the LoRA was made for."
        )

    def maker(module: str) -> Callable[[], Layer]:
        def made() -> Layer:
            layer, shape = lora.modules[module], base.shapes.get(f"{module}.weight")
            if shape is not None:
                refuse_misfit(layer, module, shape, base.name)
            return layer

        return made

    return replace(lora, modules=Layers({module: maker(module) for module in lora.modules}))


def write_study(folder: Path, study: Study, beside: Sequence[tuple[str, Image.Image]] = ()) -> Path:
    """Write a study's page, pictures and figures into a folder: index.html, figures.json, layers.csv, two PNG files.

    beside  more pictures for the page, each with its title
    ->      the page
    Raises AtelierError if the folder is a file, or lies in one.
    """
    _refuse_file(folder)
    map_, spectra = study.heat_map(), study.spectra()
    save_picture(folder / "heat_map.png", map_)
    save_picture(folder / "spectra.png", spectra)
    write_json(folder / "figures.json", {"name": study.name, "spikes": study.warnings(), **study.spectrum.as_dict()})
    write_text(folder / "layers.csv", study.spectrum.as_csv())
    blocks = sorted(study.spectrum.blocks().items(), key=lambda item: -item[1])[:MOST]
    energy = study.spectrum.energy or 1.0
    body = [
        f"<h1>{html.escape(study.name)}</h1>",
        *(f'<p class="warn">{html.escape(w)}</p>' for w in study.warnings()),
        table(("figure", "value"), list(study.summary().items())),
        figure("Layers", map_),
        figure("Spectra", spectra),
        *(figure(title, picture) for title, picture in beside),
        section("Blocks", table(("block", "share of energy"), [(b, f"{v / energy:.2%}") for b, v in blocks])),
        section("Directions", _directions(study)),
        section("Layers in figures", _layers(study)),
    ]
    return write_text(
        folder / "index.html",
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(study.name)}</title>"
        f"<style>{STYLE}</style>" + "\n".join(body) + "</html>\n",
    )


def _refuse_file(folder: Path) -> None:
    found = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if found.exists() and not found.is_dir():
        raise AtelierError(f"{found} is a file, and the page goes into a folder. Give the name of a folder.")


def section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{content}"


def figure(title: str, picture: Image.Image) -> str:
    """A picture inside the page itself."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return section(title, f'<img src="data:image/png;base64,{data}" alt="{html.escape(title)}">')


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as wide as its words; columns of numbers stand to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numbers = [all(NUMBER.fullmatch(row[c]) for row in cells if row[c]) for c in range(len(head))]
    kinds = [' class="number"' if number and cells else "" for number in numbers]
    top = "".join(f"<th{kind}>{html.escape(word)}</th>" for word, kind in zip(head, kinds, strict=True))
    lines = (
        "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in cells
    )
    return f'<div class="wide"><table><tr>{top}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _directions(study: Study) -> str:
    rows = [
        (place, d.module, d.number, f"{d.sigma:#.4g}", f"{d.share:.2%}")
        for place, d in enumerate(study.directions[:MOST], 1)
    ]
    return table(("pair", "layer", "direction", "singular value", "share of energy"), rows)


def _layers(study: Study) -> str:
    rows = [[_told(key, row[key]) for key in TITLES] for row in study.spectrum.rows()]
    words = "".join(f"<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>" for word, text in WORDS.items())
    return f"<dl>{words}</dl>{table(tuple(TITLES.values()), rows)}"


def _told(key: str, value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2%}" if key in SHARES else f"{value:#.4g}"

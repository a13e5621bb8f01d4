"""What a LoRA file is, layer by layer, and what ComfyUI and diffusers will make of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..counting import counted
from .factors import Factors
from .formats.bases import NAMES
from .formats.comfy import read_by_comfyui
from .formats.layouts import SCHEMES
from .formats.names import is_text
from .formats.reading import parse_lora
from .kinds import Layer, kind_of
from .provenance import trigger_words
from .record import Lora
from .tiles import size_of

SHOWN_KEYS = 8  # keys that are not understood, of which so many are named
LONGEST = 160  # characters of a header's entry


@dataclass(frozen=True)
class LayerFacts:
    """One layer as its file has it; scale is what its product is multiplied by."""

    module: str
    kind: str
    out: int
    width: int
    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class Inspection:
    """A file's facts: its LoRA, the layers, and sentences on what loaders make of it."""

    name: str
    lora: Lora
    layers: tuple[LayerFacts, ...]
    precision: str
    size: int
    warnings: tuple[str, ...]
    missed: tuple[str, ...]  # keys that ComfyUI's loader does not read, or not as they are meant

    @property
    def right_in_comfyui(self) -> bool:
        """Whether ComfyUI's own loader reads every layer, at the strength that is meant."""
        return not self.missed

    def text(self, every_layer: bool = False) -> str:
        """All of it in lines; `every_layer` lists the layers one by one."""
        lora = self.lora
        kinds = Counter(layer.kind for layer in self.layers)
        lines = [
            f"{self.name}: {', '.join(f'{n} {k}' for k, n in kinds.items())} layer{'s' * (len(self.layers) != 1)} "
            f"for {NAMES[lora.base]}",
            f"layout {lora.layout}, {self.precision}, {self.size / 2**20:.1f} MiB",
            f"rank {_spread([x.rank for x in self.layers])}, alpha {_spread([x.alpha for x in self.layers])}, "
            f"scale {_spread([x.scale for x in self.layers])}",
        ]
        text = sum(is_text(x.module) for x in self.layers)
        lines += [f"text encoders: {counted(text, 'layer')}"] if text else []
        lines += [f"biases and norms: {len(lora.vectors)}"] if lora.vectors else []
        words = trigger_words(lora.metadata)
        lines += [f"trigger words: {', '.join(words)}"] if words else []
        lines += [f"! {warning}" for warning in self.warnings]
        if lora.unknown:
            rest = len(lora.unknown) - SHOWN_KEYS
            more = f" and {rest} more" if rest > 0 else ""
            lines.append(f"not understood: {', '.join(lora.unknown[:SHOWN_KEYS])}{more}")
        if every_layer:
            lines += [
                f"{x.module}  {x.kind}  {x.out} x {x.width}  rank {x.rank}  alpha {x.alpha:g}" for x in self.layers
            ]
        return "\n".join([*lines, *header_lines(lora.metadata)])


def header_lines(metadata: Mapping[str, str]) -> list[str]:
    """A header's entries, the long ones cut."""
    return [f"  {k}: {v if len(v) <= LONGEST else v[: LONGEST - 3] + '...'}" for k, v in sorted(metadata.items())]


def inspect_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> Inspection:
    """Look at a LoRA, layer by layer.

    tensors, metadata, name  as parse_lora takes them
    Raises AtelierError as parse_lora does, and for layers whose values are not finite.
    """
    lora = parse_lora(tensors, metadata, name)
    layers = tuple(_facts(module, layer) for module, layer in lora.modules.items())
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for k, t in tensors.items() if not k.endswith(".alpha"))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    precision = ", ".join(name for name, _ in dtypes.most_common())
    missed = tuple(k for k in tensors if k not in set(lora.unknown) and not read_by_comfyui(k, lora.base))
    has_alpha = any(k.endswith(".alpha") for k in tensors)
    loud = {} if has_alpha else {x.module: x.scale for x in layers if x.kind in ("LoRA", "DoRA") and x.scale != 1}
    warnings = warnings_of(lora, len(missed), len(tensors), sorted(set(loud.values())), has_alpha)
    return Inspection(name, lora, layers, precision, size, tuple(warnings), (*missed, *loud))


def _facts(module: str, layer: Layer) -> LayerFacts:
    kind = kind_of(layer)
    if isinstance(layer, Factors):
        return LayerFacts(module, kind, len(layer.up), layer.down.shape[1], layer.rank, layer.alpha, layer.scale)
    scale = getattr(layer, "scale", 1.0)
    out, width = size_of(layer)
    return LayerFacts(module, kind, out, width or 0, layer.rank, scale * layer.rank, scale)


def _spread(values: list) -> str:
    """The values there are, or from the lowest to the highest."""
    some = sorted(set(values))
    if not some:
        return "none"
    return ", ".join(f"{v:g}" for v in some) if len(some) <= 3 else f"{some[0]:g} to {some[-1]:g}"


def warnings_of(lora: Lora, missed: int, keys: int, loud: list[float], has_alpha: bool) -> list[str]:
    """Sentences on what ComfyUI and diffusers will not read as it is meant.

    missed, keys  keys that ComfyUI does not read, and all
    loud          scales that are in the header alone
    """
    scheme, told = SCHEMES[lora.layout], []
    if missed:
        told.append(f"ComfyUI reads {keys - missed} of {keys} keys as they are. Convert it to kohya.")
    if not scheme.diffusers:
        told.append("diffusers does not read this layout. Convert it to kohya or diffusers.")
    if not missed and scheme.names == "diffusers" and lora.base != "sdxl":
        told.append(
            "ComfyUI's bypass loader takes q, k and v for the whole projection here. Convert it to kohya for that."
        )
    if loud:
        strengths = ", ".join(f"{1 / scale:.3g}" for scale in loud if scale)
        told.append(
            f"Its alpha is in the header alone, which ComfyUI does not read: there it acts {strengths} times as strong. "
            "Convert it to kohya."
        )
    if has_alpha and "lora_adapter_metadata" in lora.metadata:
        told.append("It has alpha in its keys and in its header, which diffusers refuses. Convert it to kohya.")
    if any(isinstance(layer, Factors) and layer.normed for layer in _some(lora)):
        told.append(
            "It is a DoRA: merging and resizing need a plain one; Convert to Plain LoRA makes it, with the base model. "
            "diffusers leaves its norms out for Flux."
        )
    return told


def _some(lora: Lora):
    """The first layers, which tell the kind of all."""
    for _, (_, layer) in zip(range(4), lora.modules.items(), strict=False):
        yield layer

"""Plain LoRAs out of what is none: the difference of two models, or a DoRA, rotation or whole difference over its base.

One layer's dense change is in memory at a time. It is cut to a rank by the eigenvectors of the Gram matrix of its
shorter side, which is exact and needs no full SVD, or by a seeded randomised SVD. No value is clamped: ComfyUI's and
kohya's extraction cut off the largest hundredth of the factors, an error of 10 % to 25 %.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import AtelierError
from ..flux.checkpoint import Weights, read, spans
from ..options import Options
from .blocks import parse_weights
from .factors import Factors, truncate
from .kinds import WIDEST, Hada, Kron, Layer, Rotation, plain
from .provenance import ARCHITECTURE, inherit
from .recompress import Retained, recompress, retained_report, share_kept
from .record import Base, Lora
from .tiles import change_over, size_of

CPU = torch.device("cpu")
MORE = 8  # directions beyond the rank that the last step chooses from
ROUNDS, SEED = 4, 0  # of subspace iteration in the randomised SVD
ROWS = 256
IMAGE_IN, GUIDANCE = "img_in.weight", "guidance_in.in_layer.weight"
FLUX2_SIZES = {6144: "flux-2-dev", 4096: "flux-2-klein-9b", 3072: "flux-2-klein-4b"}  # by the width of the model
FLUX2 = "double_stream_modulation_img.lin.weight"  # a parameter that Flux.2 has and Flux.1 has not
SIDE = 512  # shorter side up to which Gram matrices are in float64, where it costs nothing
Method = Literal["exact", "fast"]


class ExtractOptions(Options):
    """How a dense change becomes a plain LoRA."""

    rank: int = Field(
        default=64, ge=1, le=4096, description="Rank of the LoRA; with energy, the highest rank of any layer."
    )
    energy: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of each layer's energy to keep, 0 to 1; 0 gives every layer the whole rank.",
    )
    method: Method = Field(
        default="exact",
        description="exact is the best there is; fast is a randomised SVD, which keeps about 0.2 % less.",
    )
    layers: str = Field(
        default="",
        description="Layers to take, in the words of block weights, separated by commas: attention, single.7-20; "
        "nothing takes all.",
    )


@dataclass(frozen=True)
class Extracted:
    """A plain LoRA, what each of its layers keeps, and how many parameters did not differ."""

    lora: Lora
    layers: Mapping[str, Retained] = field(default_factory=dict)
    same: int = 0
    note: str = ""

    @property
    def kept(self) -> float:
        """Share of the whole change's energy in the LoRA."""
        return share_kept(self.layers)

    def report(self) -> str:
        """What the rank costs, in all and by layer, the costliest first, and what was found besides."""
        lines = retained_report(self.layers).splitlines()
        beside = [f"{len(self.lora.vectors)} biases and norms taken over as they are"] if self.lora.vectors else []
        beside += [f"{self.same} parameters do not differ and are left out"] if self.same else []
        beside += [self.note] if self.note else []
        return "\n".join([*lines[:1], *beside, *lines[1:]])


@dataclass(frozen=True)
class Step:
    """How far an extraction is; the last step has its result."""

    done: int
    total: int
    name: str
    result: Extracted | None = None


def extract(
    tuned: Weights, base: Weights, options: ExtractOptions | None = None, device: torch.device = CPU
) -> Iterator[Step]:
    """Take the difference of two models as a LoRA, a step a parameter.

    tuned   the model with the change
    base    the model without; of any precision, which need not be the same
    device  that computes; weights come to it one by one
    Raises AtelierError if the models are of different kinds or do not differ.
    """
    options = options or ExtractOptions()
    kind = _kind(tuned, base)
    names = _chosen(tuned, base, options.layers, kind)
    modules: dict[str, Layer] = {}
    fits: dict[str, Retained] = {}
    vectors: dict[str, Tensor] = {}
    same = 0
    for done, name in enumerate(names):
        yield Step(done, len(names), name)
        delta = _difference(tuned, base, name)
        if not delta.any():
            same += 1
        elif delta.dim() < 2:
            _energy(delta)
            vectors[name] = delta
        else:
            module = name.removesuffix(".weight")
            modules[module], fits[module] = fit(delta.flatten(1), options, device)
    if not modules and not vectors:
        raise AtelierError(f"{tuned.name} and {base.name} do not differ in these layers. Choose two different models.")
    recipe = {"extract": {"tuned": tuned.name, "base": base.name} | told(options)}
    lora = Lora(modules, "kohya", inherit([], recipe) | _architecture(base, kind), vectors=vectors, base=kind)
    yield Step(len(names), len(names), "", Extracted(lora, fits, same, _note(tuned, base)))


def convert(
    lora: Lora,
    base: Weights | None = None,
    options: ExtractOptions | None = None,
    device: torch.device = CPU,
    name: str = "The LoRA",
) -> Iterator[Step]:
    """Make a plain LoRA of one of any kind, a step a layer.

    lora    of any kind; what is in factors is cut in factors, exactly
    base    the model it is for; needed only for DoRA and rotations
    Raises AtelierError if the base is needed and missing, or does not fit.
    """
    options = options or ExtractOptions()
    weights = parse_weights(selection(options.layers), lora.base)
    names = [module for module in lora.modules if weights.of(module)]
    vectors = {key: value for key, value in lora.vectors.items() if weights.of(key)}
    if not names and not vectors:
        raise AtelierError(f"{name} has no layer of {options.layers!r}. Name others, or none to take all.")
    modules: dict[str, Layer] = {}
    fits: dict[str, Retained] = {}
    for done, module in enumerate(names):
        yield Step(done, len(names), module)
        modules[module], fits[module] = _converted(lora.modules[module], module, base, options, device)
    recipe = {"convert": {"lora": name, "base": base.name if base else ""} | told(options)}
    made = Lora(modules, "kohya", inherit([lora], recipe), lora.unknown, vectors, lora.base)
    yield Step(len(names), len(names), "", Extracted(made, fits))


def _converted(
    layer: Layer, module: str, base: Weights | None, options: ExtractOptions, device: torch.device
) -> tuple[Factors, Retained]:
    leans = isinstance(layer, Rotation) or (isinstance(layer, Factors) and layer.normed)
    if _in_factors(layer):
        return recompress(plain(layer), options.rank, options.energy)
    if not leans:
        out, width = size_of(layer)
        weight = torch.zeros(out, width or 1)
    elif base is None:
        raise AtelierError(
            f"{module} changes its weight by what the weight is, so the base model is needed. Connect it."
        )
    else:
        weight = fitting(base, module, layer)
    factors, retained = fit(change_over(layer, weight), options, device)
    return Factors(factors.up, factors.down, factors.alpha, kernel=layer.kernel), retained


def _in_factors(layer: Layer) -> bool:
    """Whether a layer is a product of factors that are no wider than is worth working in."""
    if isinstance(layer, Kron):
        return len(layer.w2) == 2 and layer.w1.shape[1] * layer.rank <= WIDEST
    if isinstance(layer, Hada):
        return layer.rank * layer.second[1].shape[0] <= WIDEST
    return isinstance(layer, Factors) and not layer.normed


def fitting(base: Weights, module: str, layer: Layer) -> Tensor:
    """A module's weight, [out, in] float32; raises AtelierError unless the layer fits it."""
    shape = base.shapes.get(f"{module}.weight")
    if shape is None:
        raise AtelierError(f"{base.name} has no {module}. Choose the base model that the LoRA was made for.")
    refuse_misfit(layer, module, shape, base.name)
    return read(base, f"{module}.weight").flatten(1)


def refuse_misfit(layer: Layer, module: str, shape: tuple[int, ...], where: str) -> None:
    """Raise AtelierError unless a layer fits a weight of a shape."""
    out, width = size_of(layer)
    theirs = shape[0], torch.Size(shape[1:]).numel()
    if out != theirs[0] or (width or theirs[1]) != theirs[1]:
        raise AtelierError(
            f"{module} is {theirs[0]} x {theirs[1]} in {where}, and {out} x {width or 'any'} in the LoRA. "
            "Choose the base model that the LoRA was made for."
        )


def fit(delta: Tensor, options: ExtractOptions, device: torch.device = CPU) -> tuple[Factors, Retained]:
    """The best plain LoRA layer for a dense change, in the Frobenius norm.

    delta  [out, in] float32
    ->     float32 factors with alpha equal to the rank, and the share of the energy they keep
    Source: Eckart and Young 1936; randomised: Halko et al. 2009, arXiv:0909.4061.
    """
    delta = delta.to(device)
    total = _energy(delta)
    if not total:
        return Factors(torch.zeros(len(delta), 1), torch.zeros(1, delta.shape[1]), 1.0), Retained(1, 0.0, 1.0)
    most = min(options.rank, *delta.shape)
    span = _gram_span if options.method == "exact" else _sketched_span
    tall = delta if delta.shape[0] >= delta.shape[1] else delta.T
    basis, count = span(tall, most, total, options)
    images = tall @ basis
    inside = images.cpu(), basis.T.cpu()
    up, down = inside if tall is delta else (inside[1].T, inside[0].T)
    cut, share = truncate(Factors(up, down, float(down.shape[0])), count)
    kept = share * images.double().square().sum().item() / total
    return cut, Retained(cut.rank, total, min(1.0, kept))


def _energy(delta: Tensor) -> float:
    """Squared Frobenius norm; raises AtelierError if a value is no finite number."""
    total = math.fsum(rows.double().square().sum().item() for rows in delta.split(ROWS))
    if not math.isfinite(total):
        raise AtelierError("A layer's change has values that are no finite numbers. Choose whole, working files.")
    return total


def _gram_span(tall: Tensor, most: int, total: float, options: ExtractOptions) -> tuple[Tensor, int]:
    """Orthonormal directions [n, k] of a matrix's rows among which its best approximation lies, and that one's rank."""
    exact = tall.shape[1] <= SIDE
    wide = tall.double() if exact else tall
    squares, vectors = torch.linalg.eigh(wide.T @ wide)
    squares, vectors = squares.flip(0), vectors.flip(1)
    count = _count(squares, total, most, options.energy)
    basis = vectors[:, : count + MORE].float()
    # One round of subspace iteration takes off the rounding of a float32 Gram matrix, which squares singular values.
    return torch.linalg.qr(tall.T @ (tall @ basis))[0], count


def _sketched_span(tall: Tensor, most: int, total: float, options: ExtractOptions) -> tuple[Tensor, int]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        _, sigma, basis = torch.svd_lowrank(tall, q=min(2 * most, tall.shape[1]), niter=ROUNDS)
    return basis, _count(sigma.square(), total, most, options.energy)


def _count(squares: Tensor, total: float, most: int, energy: float) -> int:
    """The fewest directions that keep a share of the energy, or as many as may be."""
    if not energy:
        return most
    shares = squares[:most].double().clamp(min=0).cumsum(0) / total
    enough = (shares >= energy - 1e-9).nonzero()
    return int(enough[0]) + 1 if len(enough) else most


def _difference(tuned: Weights, base: Weights, name: str) -> Tensor:
    delta = read(tuned, name)
    for start, stop in spans(tuple(delta.shape)):
        delta[start:stop] -= base.rows(name, start, stop)
    return delta


def _kind(tuned: Weights, base: Weights) -> Base:
    return "flux2" if FLUX2 in tuned.shapes or FLUX2 in base.shapes else "flux1"


def _architecture(base: Weights, kind: Base) -> dict[str, str]:
    """The header's entry for the model that a LoRA is for; none for a part of a model, or one of unknown size."""
    if IMAGE_IN not in base.shapes:
        return {}
    flux1 = "flux-1-dev" if GUIDANCE in base.shapes else "flux-1-schnell"
    name = FLUX2_SIZES.get(base.shapes[IMAGE_IN][0]) if kind == "flux2" else flux1
    return {ARCHITECTURE: f"{name}/lora"} if name else {}


def _chosen(tuned: Weights, base: Weights, layers: str, kind: Base) -> list[str]:
    """The parameters to compare; raises AtelierError unless both models have them alike."""
    weights = parse_weights(selection(layers), kind)
    names = [name for name in tuned.shapes if weights.of(name.removesuffix(".weight"))]
    for name in names:
        ours, theirs = tuned.shapes[name], base.shapes.get(name)
        if ours != theirs:
            found = f"is {_size(theirs)} in {base.name}" if theirs else f"is missing in {base.name}"
            raise AtelierError(
                f"{name} is {_size(ours)} in {tuned.name} and {found}. Choose two models of the same kind."
            )
    absent = (name for name in base.shapes if name not in tuned.shapes)
    missing = next((name for name in absent if weights.of(name.removesuffix(".weight"))), None)
    if missing:
        raise AtelierError(f"{base.name} has {missing}, which {tuned.name} lacks. Choose two models of the same kind.")
    return names


def _note(tuned: Weights, base: Weights) -> str:
    if tuned.precision == base.precision:
        return ""
    return (
        f"{tuned.name} is in {tuned.precision} and {base.name} in {base.precision}: what rounding differs by is taken for "
        "change, so layers of which little is kept may be nothing but that"
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def selection(layers: str) -> str:
    """Block weights that are 1 for the layers that patterns name and 0 for all others; nothing names all."""
    patterns = [p.strip() for line in layers.splitlines() for p in line.split(",") if p.strip()]
    odd = next((p for p in patterns if "=" in p), None)
    if odd:
        raise AtelierError(f"The layers have {odd!r}, which is a weight. Name layers only, such as attention.")
    return "\n".join(["default = 0", *(f"{p} = 1" for p in patterns)]) if patterns else ""


def told(options: ExtractOptions) -> dict[str, object]:
    """The options that had a part in it, for a recipe."""
    return {name: value for name, value in options.model_dump().items() if value or name == "rank"}

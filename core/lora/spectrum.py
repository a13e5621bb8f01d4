"""What a LoRA does to each layer, in figures: singular values, norms, ranks, and their sums by block and component.

All of it follows from the singular values of the true delta, which come from the factors without a dense matrix.
`measure(lora)` walks the layers once and holds one of them at a time.
"""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from ..errors import AtelierError
from ..flux.checkpoint import Weights, read
from .factors import Factors
from .kinds import Dense, Kron, Layer, Rotation, delta_over, kind_of, plain
from .places import component_of, place_of
from .record import Lora
from .svd import energy_of, svd_of

ONE_DIRECTION = 0.8  # share of a layer's energy in its first direction from which one direction is the layer
MUCH_LOUDER = 3.0  # times the median layer's first singular value
ROWS = 2048  # rows of a dense change in float64 at a time
COLUMNS: tuple[str, ...] = (
    "module", "block", "kind", "rank", "frobenius", "spectral", "stable_rank", "effective_rank", "first_share",
    "rank_90", "rank_99", "share", "base_norm", "relative", "spike",
)  # fmt: skip


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer's change: its singular values, falling, and what follows from them.

    parts      energy by component: attention, mlp, modulation, other; one layer of Flux may hold two
    base_norm  Frobenius norm of the base model's weight, where it is known
    """

    module: str
    kind: str
    rank: int
    sigma: tuple[float, ...]
    parts: Mapping[str, float]
    base_norm: float | None = None

    @cached_property
    def energy(self) -> float:
        """Squared Frobenius norm."""
        return math.fsum(s * s for s in self.sigma)

    @property
    def frobenius(self) -> float:
        return math.sqrt(self.energy)

    @property
    def spectral(self) -> float:
        return self.sigma[0]

    @property
    def stable_rank(self) -> float:
        """Energy over that of the first direction; 0 for a zero change."""
        return self.energy / self.sigma[0] ** 2 if self.energy else 0.0

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of sigma / sum(sigma) (Roy and Vetterli 2007); 0 for a zero change."""
        if not self.energy:
            return 0.0
        total = math.fsum(self.sigma)
        return math.exp(-math.fsum(s / total * math.log(s / total) for s in self.sigma if s))

    @property
    def first_share(self) -> float:
        """Share of the energy in the first direction, 0..1."""
        return self.sigma[0] ** 2 / self.energy if self.energy else 0.0

    @property
    def relative(self) -> float | None:
        """Frobenius norm over that of the base model's weight."""
        return self.frobenius / self.base_norm if self.base_norm else None

    def kept(self, rank: int) -> float:
        """Share of the energy that the best approximation of a rank keeps (Eckart-Young), 0..1."""
        return min(1.0, math.fsum(s * s for s in self.sigma[: max(0, rank)]) / self.energy) if self.energy else 1.0

    def rank_for(self, share: float) -> int:
        """The lowest rank that keeps a share of the energy, in 0..1."""
        wanted = share * self.energy * (1 - 1e-12)  # sums of squares differ in their last digit
        sums = accumulate((s * s for s in self.sigma), initial=0.0)
        return next((rank for rank, kept in enumerate(sums) if kept >= wanted), len(self.sigma))


@dataclass(frozen=True)
class Spectrum:
    """Every layer's figures in the LoRA's order; `vectors` has the norms of changed biases and norms."""

    layers: tuple[LayerSpectrum, ...]
    vectors: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def energy(self) -> float:
        """Squared Frobenius norm of the whole change of weights."""
        return math.fsum(layer.energy for layer in self.layers)

    def blocks(self) -> dict[str, float]:
        """Energy by block: double.0, single.37, others."""
        return sums((place_of(layer.module).block, layer.energy) for layer in self.layers)

    def components(self) -> dict[str, float]:
        """Energy by stream and component: img attention, single mlp."""
        pairs = (
            (f"{place_of(layer.module).stream} {part}".strip(), energy)
            for layer in self.layers
            for part, energy in layer.parts.items()
        )
        return sums(pairs)

    def kept(self, rank: int) -> float:
        """Share of the whole energy that stays when every layer is brought to a rank."""
        return math.fsum(la.kept(rank) * la.energy for la in self.layers) / self.energy if self.energy else 1.0

    def spikes(self) -> list[LayerSpectrum]:
        """Layers in which one direction is nearly all and far louder than elsewhere; such LoRAs do not stack well."""
        if len(self.layers) < 2:
            return []
        usual = statistics.median(layer.spectral for layer in self.layers)
        return [
            layer
            for layer in self.layers
            if len(layer.sigma) > 1 and layer.first_share >= ONE_DIRECTION and layer.spectral >= MUCH_LOUDER * usual
        ]

    def rows(self) -> list[dict[str, object]]:
        """One flat record a layer, under COLUMNS."""
        spikes = {layer.module for layer in self.spikes()}
        return [
            dict(zip(COLUMNS, (
                la.module, place_of(la.module).block, la.kind, la.rank, la.frobenius, la.spectral, la.stable_rank,
                la.effective_rank, la.first_share, la.rank_for(0.9), la.rank_for(0.99),
                la.energy / self.energy if self.energy else 0.0, la.base_norm, la.relative, la.module in spikes,
            ), strict=True))
            for la in self.layers
        ]  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """Everything as plain values, for JSON."""
        return {
            "frobenius": math.sqrt(self.energy),
            "blocks": self.blocks(),
            "components": self.components(),
            "vectors": dict(self.vectors),
            "layers": [
                row | {"sigma": list(la.sigma)} for row, la in zip(self.rows(), self.layers, strict=True)
            ],
        }  # fmt: skip

    def as_csv(self) -> str:
        """One line a layer, with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()


def sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Values added up by name, in the order the names come."""
    out: dict[str, float] = {}
    for name, value in pairs:
        out[name] = out.get(name, 0.0) + value
    return out


def measure(lora: Lora, base: Weights | None = None, seen: Callable[[int], None] = lambda _: None) -> Spectrum:
    """Measure every layer of a LoRA, one at a time.

    base  the base model's weights; norms are then told relative to them
    seen  called with the number of layers done
    Raises AtelierError for a DoRA or a rotation without the base, whose change depends on it.
    """
    layers = []
    for done, (module, layer) in enumerate(lora.modules.items(), 1):
        name = f"{module}.weight"
        layers.append(measure_layer(module, layer, read(base, name) if base and name in base.shapes else None))
        seen(done)
    if not layers:
        raise AtelierError("The LoRA changes no layer. Choose one that does.")
    return Spectrum(tuple(layers), {name: value.float().norm().item() for name, value in lora.vectors.items()})


def measure_layer(module: str, layer: Layer, weight: Tensor | None = None) -> LayerSpectrum:
    """Measure one layer; `weight` [out, in] is the base model's, a convolution's flattened."""
    if isinstance(layer, Rotation) or (isinstance(layer, Factors) and layer.normed):
        if weight is None:
            raise AtelierError(
                f"{module} is a {kind_of(layer)}, whose change depends on the base model. Give the base model too."
            )
        change: Layer = Dense(delta_over(layer, weight.flatten(1).cpu()))
    else:
        change = layer
    sigma = singular_values(change)
    norm = None if weight is None else weight.float().norm().item()
    parts = component_energies(module, change, math.fsum(s * s for s in sigma))
    return LayerSpectrum(module, kind_of(layer), layer.rank, tuple(sigma), parts, norm)


def singular_values(layer: Layer) -> list[float]:
    """Singular values of a layer's change, falling, those at rounding left out; at least one.

    Raises AtelierError for a DoRA or a rotation.
    """
    if isinstance(layer, Kron):  # those of a Kronecker product are the products of its factors'
        parts = [Dense(layer.w1), Factors(*layer.w2, float(layer.rank)) if len(layer.w2) == 2 else Dense(layer.w2[0])]
        first, second = (torch.tensor(singular_values(part), dtype=torch.float64) for part in parts)
        return (abs(layer.scale) * torch.outer(first, second)).flatten().sort(descending=True)[0].tolist()
    if isinstance(layer, Dense):
        return dense_singular_values(layer.value)
    factors = plain(layer)
    return svd_of(factors.up, factors.down, abs(factors.scale)).sigma.tolist()


def dense_singular_values(matrix: Tensor) -> list[float]:
    """Singular values of a dense matrix from the Gram matrix of its shorter side, in float64, those at rounding left out."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(ROWS):
        gram += rows.double().T @ rows.double()
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    solid = int((values > values[0] * len(values) * torch.finfo(torch.float64).eps).sum())
    return values[: max(1, solid)].sqrt().tolist()


def component_energies(module: str, layer: Layer, energy: float) -> dict[str, float]:
    """A layer's energy by component; Flux's fused linear1 and linear2 hold attention and mlp side by side.

    energy  of the whole layer
    """
    kind = component_of(module)
    if kind != "attention+mlp" or not isinstance(layer, Factors | Dense):
        return {kind: energy}
    left, right = (layer.value, None) if isinstance(layer, Dense) else (layer.up, layer.down)
    hidden = left.shape[0] if module.endswith("linear2") else (left if right is None else right).shape[1]
    if module.endswith("linear1"):  # rows of q, k and v, then the mlp's
        left = left[: 3 * hidden]
    elif right is None:  # linear2's columns: the attention's, then the mlp's
        left = left[:, :hidden]
    else:
        right = right[:, :hidden]
    first = left.double().square().sum().item() if right is None else energy_of(left, right, cast(Factors, layer).scale)
    return {"attention": first, "mlp": max(0.0, energy - first)}

"""Bringing a LoRA to lower ranks: fixed, by what each layer keeps, or by the size of the file.

Every choice is made on a layer's whole spectrum, so that the share of energy told is the share kept. The result's
layers are made when they are asked for; until then only small maps are held for each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor

from ..counting import counted
from ..errors import AtelierError
from .anatomy import ANATOMY
from .blocks import BlockWeights, parse_weights
from .factors import Factors
from .kinds import Dense, Hada, Kron, Layer, plain
from .provenance import inherit
from .record import Base, Layers, Lora
from .svd import Svd, energy_of, svd_of

Method = Literal["rank", "energy", "frobenius", "cumulative", "ratio"]
METHODS: tuple[Method, ...] = ("rank", "energy", "frobenius", "cumulative", "ratio")
Watch = Callable[[int], object]


@dataclass(frozen=True)
class Rule:
    """How many singular directions a layer keeps; the fewest that meet the rule.

    method  rank: `value` directions; 0 drops the layer
            energy: sum sigma^2 of the kept >= value * the whole
            frobenius: the root of that share >= value, as kohya's sv_fro
            cumulative: sum sigma of the kept >= value * the whole
            ratio: all sigma >= the largest / value
    value   whole and 0 or more for rank, in (0, 1] for shares, 1 or more for ratio
    least   directions kept in any case; of no meaning to rank
    most    directions kept at most, 0 for no limit; of no meaning to rank
    """

    method: Method
    value: float
    least: int = 1
    most: int = 0

    def __post_init__(self) -> None:
        asked, fits = {
            "rank": ("a whole number, 0 or more", self.value >= 0 and self.value % 1 == 0),
            "ratio": ("1 or more", self.value >= 1),
        }.get(self.method, ("above 0 and at most 1", 0 < self.value <= 1))
        if not fits:
            raise AtelierError(f"The {self.method} to resize to is {self.value:g}. Give a value that is {asked}.")
        check_limits(self.least, self.most)
        if self.method == "rank" and (self.least, self.most) != (1, 0):
            raise AtelierError("A fixed rank has limits besides. Leave least and most out, or choose by energy.")

    def rank(self, sigma: Tensor) -> int:
        """How many of a spectrum's directions to keep; sigma [k], falling, whole."""
        if self.method == "rank":
            return min(int(self.value), len(sigma))
        if self.method == "ratio":
            wanted = int((sigma >= sigma[0] / self.value).sum())
        else:
            sums = (sigma if self.method == "cumulative" else sigma.square()).cumsum(0)
            sums = sums.sqrt() if self.method == "frobenius" else sums
            wanted = int((sums < self.value * sums[-1]).sum()) + 1
        return min(max(min(wanted, self.most or wanted), self.least), len(sigma))


def check_limits(least: int, most: int) -> None:
    """Raise AtelierError for a lowest and a highest rank that no layer can meet; 0 for no highest."""
    if least < 0 or most < 0 or (most and most < least):
        raise AtelierError(f"The lowest rank is {least} and the highest {most}. Give a highest of 0 for no limit.")


@dataclass(frozen=True)
class LayerRule:
    """A rule for some layers: `layers` weighs them 1 and all others 0; without a rule they stay as they are."""

    text: str
    layers: BlockWeights
    rule: Rule | None


def parse_rules(text: str, base: Base = "flux1") -> tuple[LayerRule, ...]:
    """Read rules for some layers, one a line; a later one wins, and what follows # is a comment.

    text  `single.0-9: rank=4`, `attention: energy=0.95 least=2 most=16`, `final_layer: keep`, `*.txt_mlp: drop`;
          the patterns are those of block weights
    Raises AtelierError for what is no rule, and a pattern that names no layer of the base.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(_layer_rule(line, base) for line in lines if line)


def check_rule_text(text: str) -> None:
    """Raise AtelierError for rules that fit no base's layers; the sentence is Flux.1's."""
    for base in ANATOMY:
        try:
            parse_rules(text, base)
        except AtelierError:
            continue
        return
    parse_rules(text)


def _layer_rule(line: str, base: Base) -> LayerRule:
    pattern, colon, asked = (part.strip() for part in line.rpartition(":"))
    pairs = [word.partition("=") for word in asked.split()]
    try:
        rule = _read_rule({name: value and float(value) for name, _, value in pairs})
    except (KeyError, ValueError):
        rule, colon = None, ""
    if not colon:
        raise AtelierError(
            f"The rules have {line!r}. Write pattern: rank=4 or energy=0.9, frobenius, cumulative or ratio, "
            "with least= and most= if wanted; or pattern: keep or drop."
        )
    return LayerRule(line, parse_weights(f"default = 0, {pattern} = 1", base), rule)


def _read_rule(words: dict[str, str | float]) -> Rule | None:
    """The rule of its words; raises KeyError or ValueError if they are none."""
    if words in ({"keep": ""}, {"drop": ""}):
        return None if "keep" in words else Rule("rank", 0)
    limits = {k: _whole(words.pop(k)) for k in ("least", "most") if k in words}
    ((method, value),) = words.items()
    if method not in METHODS or value == "":
        raise KeyError(method)
    return Rule(method, float(value), **limits)


def _whole(number: str | float) -> int:
    if number == "" or float(number) % 1:
        raise ValueError(number)
    return int(number)


def rule_for(name: str, rules: Sequence[LayerRule]) -> LayerRule | None:
    """The last rule that is about a layer or a vector, by its name."""
    return next((rule for rule in reversed(rules) if rule.layers.of(name)), None)


@dataclass(frozen=True)
class LayerCut:
    """What happened to a layer.

    before, rank   its rank before and now; 0 where it is dropped
    energy         sum of squares of its change before; 0 where that depends on the base model
    kept           share of it that is kept, 0..1
    sigma          the smallest singular value kept and the largest dropped; 0 where there is none or it was not needed
    """

    name: str
    before: int
    rank: int
    energy: float
    kept: float
    sigma: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Resized:
    """A LoRA of lower ranks, and what became of every layer."""

    lora: Lora
    layers: tuple[LayerCut, ...]
    left_out: int = 0  # tensors of the source that mean nothing here

    @property
    def kept(self) -> float:
        """Share of the energy of all layers that is kept."""
        total = sum(cut.energy for cut in self.layers)
        return sum(cut.energy * cut.kept for cut in self.layers) / total if total > 0 else 1.0

    @property
    def error(self) -> float:
        """Predicted relative error of the layers' outputs: the root of the lost share, as for white inputs."""
        return max(0.0, 1.0 - self.kept) ** 0.5

    @property
    def summary(self) -> str:
        """The whole LoRA in two or three lines."""
        ranks = [cut.rank for cut in self.layers if cut.rank]
        dropped = len(self.layers) - len(ranks)
        spread = f"rank {min(ranks)} to {max(ranks)}, {sum(ranks) / len(ranks):.1f} on average" if ranks else "no layer"
        lines = [
            f"{counted(len(ranks), 'layer')}, {spread}; {dropped} dropped",
            f"{self.kept:.4%} of the energy kept; predicted error of what the layers add {self.error:.2%}, "
            "for inputs that favour no direction",
        ]
        left = counted(self.left_out, "tensor that is no layer was", "tensors that are no layer were")
        return "\n".join(lines + [f"{left} left out"] * bool(self.left_out))

    @property
    def table(self) -> str:
        """Every layer on a line of its own, below a heading."""
        rows = [f"{'layer':<40}{'rank':>12}{'energy kept':>14}{'sigma kept':>13}{'dropped':>11}"]
        for cut in self.layers:
            kept, lost = (f"{s:.4g}" if s else "-" for s in cut.sigma)
            change = f"{cut.before} > {cut.rank}" if cut.rank != cut.before else f"{cut.rank}"
            rows.append(f"{cut.name:<40}{change:>12}{cut.kept:>14.4%}{kept:>13}{lost:>11}")
        return "\n".join(rows)


@dataclass(frozen=True)
class Part:
    """A layer's share of a plan: its rank, None to keep it as it is, and its SVD cut to that rank where that is known."""

    rank: int | None
    cut: LayerCut
    svd: Svd | None = None


def resize(lora: Lora, rule: Rule, rules: Sequence[LayerRule] = (), watch: Watch | None = None) -> Resized:
    """Bring every layer to the rank that a rule asks for, by the best approximation in the Frobenius norm.

    Vectors stay as they are; LoKr and LoHa layers become plain ones, unless nothing of them is cut.

    rule   for all layers that `rules` are not about
    watch  called with the number of layers done
    Raises AtelierError for a layer that is no product of factors (DoRA, OFT, whole differences), if a rule is about no
    layer of the LoRA, and if nothing is left.
    Source: Eckart and Young 1936.
    """
    check_rules(lora, rules)
    parts = {}
    for done, (name, layer) in enumerate(lora.modules.items(), 1):
        own = rule_for(name, rules)
        parts[name] = plan_layer(name, layer, own.rule if own else rule)
        if watch:
            watch(done)
    told = {"method": rule.method, "value": rule.value, "least": rule.least, "most": rule.most}
    return rebuilt(lora, parts, rules, {"resize": told | {"rules": [r.text for r in rules]}})


def check_rules(lora: Lora, rules: Iterable[LayerRule]) -> None:
    """Raise AtelierError for a rule about nothing that a LoRA has."""
    for rule in rules:
        if not any(rule.layers.of(name) for name in (*lora.modules, *lora.vectors)):
            raise AtelierError(f"The rule {rule.text!r} is about no layer of this LoRA. Change it or take it out.")


def plan_layer(name: str, layer: Layer, rule: Rule | None) -> Part:
    """What becomes of a layer under a rule; without one it stays as it is."""
    if rule is None or (rule.method == "rank" and rule.value == 0):
        energy = layer_energy(layer)
        before = layer.rank
        return Part(
            None if rule is None else 0, LayerCut(name, before, before * (rule is None), energy, float(rule is None))
        )
    factors = plain(layer)
    svd = svd_of(factors.up, factors.down, factors.scale)
    return part_of(name, factors.rank, svd, rule.rank(svd.sigma))


def part_of(name: str, before: int, svd: Svd, rank: int) -> Part:
    """The plan for a layer of a known spectrum at a rank; what has that rank already stays as it is."""
    squares = svd.sigma.square()
    total, kept = squares.sum().item(), squares[:rank].sum().item()
    ends = svd.sigma[rank - 1].item() if rank else 0.0, svd.sigma[rank].item() if rank < len(squares) else 0.0
    whole = rank == before
    cut = LayerCut(name, before, rank, total, kept / total if total > 0 else 1.0, ends)
    return Part(None if whole else rank, cut, svd.balanced(rank) if 0 < rank < before else None)


def rebuilt(lora: Lora, parts: Mapping[str, Part], rules: Sequence[LayerRule], recipe: dict) -> Resized:
    """The LoRA of a plan; raises AtelierError if nothing is left of it."""

    def maker(name: str, part: Part) -> Callable[[], Layer]:
        return lambda: lora.modules[name] if part.rank is None else _cut(lora.modules[name], cast(Svd, part.svd))

    makers = {name: maker(name, part) for name, part in parts.items() if part.rank != 0}
    dropped = Rule("rank", 0)
    vectors = {k: v for k, v in lora.vectors.items() if (own := rule_for(k, rules)) is None or own.rule != dropped}
    if not makers and not vectors:
        raise AtelierError("Nothing is left of the LoRA: all of its layers are dropped. Drop fewer.")
    made = replace(lora, modules=Layers(makers), vectors=vectors, metadata=inherit([lora], recipe), unknown=())
    return Resized(made, tuple(part.cut for part in parts.values()), len(lora.unknown))


def _cut(layer: Layer, svd: Svd) -> Factors:
    """A layer in the directions of a balanced SVD, float32, alpha equal to the rank."""
    factors = plain(layer)
    up, down = svd.left(factors.up), svd.right(factors.down)
    return Factors(up, down, float(len(svd.sigma)), kernel=factors.kernel)


def layer_energy(layer: Layer) -> float:
    """The sum of squares of a layer's change; 0 for a DoRA and a rotation, where it depends on the base model."""
    if isinstance(layer, Hada):
        layer = layer.factors()
    if isinstance(layer, Factors):
        return 0.0 if layer.normed else energy_of(layer.up, layer.down, layer.scale)
    if isinstance(layer, Kron):
        second = energy_of(*layer.w2) if len(layer.w2) == 2 else layer.w2[0].double().square().sum().item()
        return layer.scale**2 * layer.w1.double().square().sum().item() * second
    return layer.value.double().square().sum().item() if isinstance(layer, Dense) else 0.0

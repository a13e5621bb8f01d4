"""Which layers are trained, and with which rank, alpha and rate: presets by subject, rules by pattern.

A rule is a line like `single_blocks.(7|20).*: rank=32 alpha=16 rate=0.5`. Its pattern is a regular expression that has
to match a whole module name of the original layout; the first rule that matches a module counts.
"""

import re
from dataclasses import dataclass, replace

from torch import nn

from ..core.errors import AtelierError
from ..core.flux.layout import FluxShape
from .config import AdapterOptions, Targets

DOUBLE, SINGLE = r"double_blocks\.\d+", r"single_blocks\.\d+"
ATTENTION = rf"{DOUBLE}\.(img|txt)_attn\.(qkv|proj)|{SINGLE}\.linear1"
MLP = rf"{DOUBLE}\.(img|txt)_mlp\.[02]|{SINGLE}\.linear2"
MODULATION = rf"{DOUBLE}\.(img|txt)_mod\.lin|{SINGLE}\.modulation\.lin"
FILE_BYTES = 2  # a LoRA is written in float16


@dataclass(frozen=True)
class Target:
    """One layer to be trained; `rate` multiplies the learning rate."""

    name: str
    out: int
    width: int
    rank: int
    alpha: float
    rate: float = 1.0


@dataclass(frozen=True)
class Rule:
    """One line of layer_rules; None leaves the option's own value."""

    text: str
    pattern: re.Pattern
    rank: int | None = None
    alpha: float | None = None
    rate: float | None = None


def preset(targets: Targets, shape: FluxShape) -> str:
    """The pattern of module names behind a preset.

    The block presets follow what trainers of faces and of styles report for Flux.1's 38 single blocks: likeness sits in
    7, 12, 16 and 20, look and texture in the later half. On another depth the same shares of it are taken.
    """
    if targets == "subject blocks":
        chosen = sorted({round(n * shape.single / 38) for n in (7, 12, 16, 20)} & set(range(shape.single)))
    elif targets == "style blocks":
        chosen = list(range(shape.single // 2, shape.single))
    else:
        return {
            "attention": ATTENTION,
            "attention+mlp": f"{ATTENTION}|{MLP}",
            "all": f"{ATTENTION}|{MLP}|{MODULATION}",
        }[targets]
    return rf"single_blocks\.({'|'.join(map(str, chosen))})\.linear[12]"


def choose(tree: nn.Module, options: AdapterOptions) -> list[Target]:
    """The layers that options train, in the tree's own order.

    tree  a FluxTree or TrainView
    Raises AtelierError for a rule that cannot be read or matches nothing, or if no layer is left.
    """
    rules, pattern, found = read_rules(options.layer_rules), re.compile(preset(options.targets, tree.shape)), []
    used: set[str] = set()
    for name, module in tree.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        rule = next((r for r in rules if r.pattern.fullmatch(name)), None)
        if rule:
            used.add(rule.text)
        if rule is None and not pattern.fullmatch(name):
            continue
        target = Target(name, module.out_features, module.in_features, options.rank, options.alpha)
        target = _ruled(target, rule) if rule else target
        if target.rank:
            found.append(target)
    idle = next((r for r in rules if r.text not in used), None)
    if idle:
        raise AtelierError(
            f"The layer rule {idle.text!r} matches no layer that an earlier rule has left. "
            "Write names like double_blocks.0.img_attn.qkv or single_blocks.*.linear1."
        )
    if not found:
        raise AtelierError("The layer rules leave no layer to train. Give at least one layer a rank above 0.")
    return found


def _ruled(target: Target, rule: Rule) -> Target:
    """A target with what its rule says; a rank without an alpha keeps the scale."""
    rank = target.rank if rule.rank is None else rule.rank
    alpha = rule.alpha if rule.alpha is not None else target.alpha * rank / target.rank
    return replace(target, rank=rank, alpha=alpha, rate=1.0 if rule.rate is None else rule.rate)


def read_rules(text: str) -> list[Rule]:
    """Read layer rules, one a line; empty lines and lines that start with # are passed over.

    Raises AtelierError that shows the line.
    """
    return [_read_rule(line) for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def _read_rule(line: str) -> Rule:
    pattern, _, values = line.rpartition(":")
    given: dict[str, float] = {}
    for word in values.replace(",", " ").split():
        key, _, value = word.partition("=")
        if key not in ("rank", "alpha", "rate") or not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", value):
            raise AtelierError(
                f"The layer rule {line!r} has {word!r}. Write rank=16, alpha=16 or rate=0.5 after the colon."
            )
        given[key] = float(value)
    rank = given.get("rank", 16)
    if not pattern or not given or rank != int(rank) or rank > 1024:
        raise AtelierError(f"The layer rule {line!r} is not complete. Write pattern: rank=16 alpha=16 rate=0.5.")
    if given.get("alpha", 1) <= 0 or given.get("rate", 1) <= 0:
        raise AtelierError(f"The layer rule {line!r} has a zero. Write rank=0 to leave layers out.")
    # People write * for anything; a lone star would be an error in a regular expression.
    expression = re.sub(r"(?<![.)\]\\])\*", ".*", pattern.strip())
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise AtelierError(f"The layer rule {line!r} is no pattern ({error}). Write single_blocks.*.linear1.") from None
    return Rule(line, compiled, int(rank) if "rank" in given else None, given.get("alpha"), given.get("rate"))


def parameters(targets: list[Target], options: AdapterOptions) -> int:
    """Trained numbers of an adapter on these layers."""
    return sum(_numbers(t, options) for t in targets)


def _numbers(target: Target, options: AdapterOptions) -> int:
    plain = target.rank * (target.out + target.width)
    if options.adapter_type == "dora":
        return plain + target.out
    if options.adapter_type == "loha":
        return 2 * plain
    if options.adapter_type == "lokr":
        from peft.tuners.lokr.layer import factorization

        (a, b), (c, d) = (factorization(size, options.lokr_factor) for size in (target.out, target.width))
        return a * c + (target.rank * (b + d) if target.rank < max(b, d) / 2 else b * d)
    return plain


def summary(targets: list[Target], options: AdapterOptions) -> str:
    """What is trained, in one line: layers, ranks, numbers, file size."""
    count = parameters(targets, options)
    ranks = sorted({t.rank for t in targets})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return (
        f"{options.adapter_type} on {len(targets)} layers, rank {span}: "
        f"{count / 1e6:.2f} M numbers, a file of {count * FILE_BYTES / 1e6:.1f} MB"
    )

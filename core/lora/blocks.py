"""Block weights: how much of a LoRA counts in which block, as text, by number and by name.

Entries stand between commas or on lines of their own, `pattern = weight`; what follows # is a comment. A later entry
wins over an earlier one, and what no entry names keeps its weight of 1.

    default = 0                what no other entry names, wherever this one stands
    double.0-18 = 0.5          blocks by their numbers in the model; also double.5 and double.0-3+7
    single.0-37 = 0..1         a ramp from the first number to the last
    single = 0                 all blocks of a kind
    attention = 0.5            parts: attention, mlp, modulation, img, txt, qkv, proj
    double.0-9.mlp = 0         a part of some blocks
    *.img_attn = 0             a glob over module names or beginnings of them; an exact name works as well
    text = 0                   text encoders; other = 0 is what is in no block, such as img_in and final_layer

A single block's linear1 (queries, keys, values and the first half of its MLP in one) counts as attention and its
linear2 as mlp, as in the training options. For Flux.1 the text may begin with a vector: 57 numbers (19 double blocks,
38 single), 58 with a number for everything else before them, or 61 as CLIP, T5, IN, the blocks and OUT.
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..counting import counted
from ..errors import AtelierError
from .anatomy import ANATOMY, TEXT, Anatomy, Kind, modules
from .factors import Factors
from .kinds import Dense, Hada, Kron, Layer, kind_of
from .provenance import inherit
from .record import Base, Layers, Lora

NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
VALUE = re.compile(rf"({NUMBER})(?:\.\.({NUMBER}))?")
MOST_TOLD = 8  # different weights in a summary
NUMBERS = re.compile(r"\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*")


@dataclass(frozen=True)
class Rule:
    """One entry: an expression for the beginning of names, its group 1 a block's number where `numbers` are given."""

    text: str
    pattern: re.Pattern
    numbers: tuple[tuple[int, int], ...] = ()
    start: float = 1.0
    end: float = 1.0

    def weight(self, module: str) -> float | None:
        """The weight of a module, or None if the entry is not about it."""
        found = self.pattern.match(module)
        if not found:
            return None
        if not self.numbers:
            return self.start
        number = int(found[1])
        if not any(first <= number <= last for first, last in self.numbers):
            return None
        first, last = min(a for a, _ in self.numbers), max(b for _, b in self.numbers)
        share = (number - first) / (last - first) if last > first else 0.0
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class BlockWeights:
    """A weight for every module of a base; `text` is what it was read from."""

    text: str = ""
    base: Base = "flux1"
    rules: tuple[Rule, ...] = ()

    def of(self, module: str) -> float:
        """The weight of a module, or of a parameter, by its original name; 1 where no entry names it."""
        return next((w for rule in reversed(self.rules) if (w := rule.weight(module)) is not None), 1.0)

    def blocks(self) -> dict[str, list[float]]:
        """The weights of whole blocks, by kind, in the order of their numbers; what parts of them have is not in it."""
        kinds = ANATOMY[self.base].kinds
        return {name: [self.of(f"{kind.prefix}.{n}") for n in range(kind.count)] for name, kind in kinds.items()}


def parse_weights(text: str, base: Base = "flux1") -> BlockWeights:
    """Read block weights in the words this module begins with.

    text  entries or a vector; nothing means 1 everywhere
    base  the kind of model whose modules the patterns name
    Raises AtelierError for what is no entry, a vector of another length, and a pattern that names no module.
    """
    vector: list[float] = []
    defaults: list[Rule] = []
    rules: list[Rule] = []
    for entry in _entries(text):
        if "=" in entry:
            rule = _read(entry, base)
            (defaults if rule.text.startswith("default") else rules).append(rule)
        elif rules or defaults:
            raise AtelierError(f"The block weights have {entry!r} among patterns. Write it as pattern = weight.")
        else:
            vector += [_number(word, entry) for word in entry.split()]
    return BlockWeights(text, base, (*defaults, *_vector(vector, base), *rules))


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from filter(None, map(str.strip, re.split("[,;]", line.partition("#")[0])))


def _number(word: str, entry: str) -> float:
    if not re.fullmatch(NUMBER, word):
        raise AtelierError(f"The block weights have {entry!r}, which is no entry. Write pattern = weight.")
    return float(word)


def _vector(numbers: list[float], base: Base) -> list[Rule]:
    """The rules of a vector by its length; raises AtelierError for one that is no known layout."""
    if not numbers:
        return []
    if base != "flux1":
        raise AtelierError(
            f"The block weights are a vector of {len(numbers)} numbers, and the LoRA is for {ANATOMY[base].title}. "
            "Vectors are for Flux.1; write patterns such as " + f"{next(iter(ANATOMY[base].kinds))}.0-3 = 0.5."
        )
    blocks = [f"double.{n}" for n in range(19)] + [f"single.{n}" for n in range(38)]
    ends = ["img_in", "txt_in", "time_in", "vector_in", "guidance_in"]
    groups = {
        57: [[b] for b in blocks],
        58: [["text", "other"], *([b] for b in blocks)],
        61: [["clip_l", "clip_g"], ["t5xxl"], ends, *([b] for b in blocks), ["final_layer"]],
    }.get(len(numbers))
    if groups is None:
        raise AtelierError(
            f"The block weights are a vector of {len(numbers)} numbers. Give 57 (19 double blocks, then 38 single), "
            "58 with one for everything else before them, or 61 as CLIP, T5, IN, the blocks, OUT."
        )
    pairs = zip(groups, numbers, strict=True)
    return [replace(_rule(name, base), start=w, end=w) for names, w in pairs for name in names]


def _read(entry: str, base: Base) -> Rule:
    """The rule of an entry `pattern = weight`."""
    pattern, _, value = (part.strip() for part in entry.rpartition("="))
    found = VALUE.fullmatch(value.replace(" ", ""))
    if not found or not pattern:
        raise AtelierError(
            f"The block weights have {entry!r}, which is no entry. Write pattern = weight, such as single.0-9 = 0.5."
        )
    start, end = float(found[1]), float(found[2] or found[1])
    rule = _rule(pattern, base)
    if found[2] and not rule.numbers:
        raise AtelierError(
            f"The block weights have {entry!r}, and {pattern} has no block numbers for a ramp. "
            "Write the blocks by number, such as single.0-37 = 0..1."
        )
    return replace(rule, text=entry, start=start, end=end)


def _rule(pattern: str, base: Base) -> Rule:
    """The rule of a pattern, its weight still 1; raises AtelierError if a model of the base has no such module."""
    anatomy = ANATOMY[base]
    head, *rest = pattern.split(".")
    kind = next((k for name, k in anatomy.kinds.items() if head in (name, k.prefix)), None)
    if kind:
        rule = _block_rule(pattern, kind, rest, anatomy)
    else:
        words = {
            "default": "",
            "text": TEXT,
            "other": f"(?!{TEXT}|{anatomy.blocks})",
            **{name: f"(?:{part})" for name, part in anatomy.parts.items()},
        }
        rule = Rule(pattern, re.compile(words[pattern] if pattern in words else _glob(pattern)))
    if not any(rule.weight(name) is not None for name in modules(base)):
        raise AtelierError(
            f"The block weights name {pattern}, which no {anatomy.title} model has. {_nearest(pattern, base)}"
        )
    return rule


def _block_rule(pattern: str, kind: Kind, rest: list[str], anatomy: Anatomy) -> Rule:
    """The rule of `kind`, `kind.numbers`, `kind.numbers.part` or `kind.part`."""
    numbers = ((0, kind.count - 1),)
    if rest and NUMBERS.fullmatch(rest[0]):
        spans = [span.partition("-") for span in rest[0].split("+")]
        numbers = tuple((int(a), int(b or a)) for a, _, b in spans)
        odd = next(((a, b) for a, b in numbers if not a <= b < kind.count), None)
        if odd:
            raise AtelierError(
                f"The block weights name {pattern}, and {anatomy.title} has {kind.prefix} 0 to {kind.count - 1}. "
                "Write the first number, a hyphen and the last."
            )
        rest = rest[1:]
    elif rest and rest[0] == "*":
        rest = rest[1:]
    tail = ".".join(rest)
    number = rf"{kind.prefix}\.(\d+)"
    if tail in anatomy.parts:
        return Rule(pattern, re.compile(rf"(?={anatomy.parts[tail]}){number}\."), numbers)
    return Rule(pattern, re.compile(rf"{number}\.{_glob(tail)}" if tail else rf"{number}(?:\.|$)"), numbers)


def _glob(pattern: str) -> str:
    """An expression for names that a glob matches, wholly or up to a dot."""
    wild = {"*": ".*", "?": "."}
    return "".join(wild.get(c) or re.escape(c) for c in pattern) + r"(?:\.|$)"


def _nearest(pattern: str, base: Base) -> str:
    """What a person may have meant by a pattern, as a sentence."""
    anatomy = ANATOMY[base]
    names = modules(base)
    known = {"default", "text", "other", *anatomy.parts, *names}
    for name, kind in anatomy.kinds.items():
        layers = [m.removeprefix(f"{kind.prefix}.0.") for m in names if m.startswith(f"{kind.prefix}.0.")]
        tails = {layer[:end] for layer in layers for end in _ends(layer)} | set(anatomy.parts)
        known |= {name, f"{name}.0", f"{kind.prefix}.0"}
        known |= {f"{start}{tail}" for start in (f"{name}.", f"{name}.0.", f"{kind.prefix}.0.", "*.") for tail in tails}
    plain = re.sub(r"\d+(-\d+)?(?=\.|$)", "0", pattern, count=1)
    near = difflib.get_close_matches(plain, sorted(known), 1, 0.5)
    return (
        f"The nearest name is {near[0]}." if near else f"Write names such as {', '.join(anatomy.kinds)} or attention."
    )


def _ends(name: str) -> list[int]:
    """Where a name may end: at each dot and at its end."""
    return [i for i, c in enumerate(name) if c == "."] + [len(name)]


def apply_weights(lora: Lora, weights: BlockWeights) -> Lora:
    """A LoRA with each layer's change multiplied by its weight; layers of weight 0 are left out.

    Only one number of a layer is scaled (alpha, or the scale of what has none), so a weight counts once and its sign
    stays. Layers are made when they are asked for.

    lora     of the base that the weights are for
    weights  read with that base
    ->       its header tells the weights
    Raises AtelierError, when a layer is asked for, for a weight between on a DoRA or a rotation, whose change is not
    proportional to any number a file has; and if the base is another or nothing is left.
    """
    if not weights.rules:
        return lora
    if weights.base != lora.base:
        titles = ANATOMY[weights.base].title, ANATOMY[lora.base].title
        raise AtelierError(
            f"The block weights are for {titles[0]} and the LoRA for {titles[1]}. Write them for its base."
        )
    kept = {name: w for name in lora.modules if (w := weights.of(name))}
    vectors = {name: value * w for name, value in lora.vectors.items() if (w := weights.of(name))}
    if not kept and not vectors:
        raise AtelierError("The block weights leave nothing of the LoRA: all of its layers have weight 0. Raise one.")
    layers = Layers({name: _maker(lora, name, weight) for name, weight in kept.items()})
    told = inherit([lora], {"block weights": weights.text})
    return replace(lora, modules=layers, vectors=vectors, metadata=told)


def _maker(lora: Lora, name: str, weight: float) -> Callable[[], Layer]:
    return lambda: scaled(lora.modules[name], weight, name)


def scaled(layer: Layer, weight: float, name: str = "A layer") -> Layer:
    """A layer whose change is `weight` times as large, its tensors shared where that can be.

    name  what to call it in errors
    Raises AtelierError for a DoRA or a rotation unless the weight is 1.
    """
    if weight == 1:
        return layer
    if isinstance(layer, Factors) and not layer.normed:
        return replace(layer, alpha=layer.alpha * weight)
    if isinstance(layer, Kron | Hada):
        return replace(layer, scale=layer.scale * weight)
    if isinstance(layer, Dense):
        return replace(layer, value=layer.value * weight)
    raise AtelierError(
        f"{name} is a {kind_of(layer)}, whose change no number in a file scales. "
        "Give its blocks the weight 0 or 1, or extract a plain LoRA from it first."
    )


def check_weights(text: str) -> None:
    """Raise AtelierError for a text that no base's modules make sense of; the sentence is Flux.1's."""
    for base in ANATOMY:
        try:
            parse_weights(text, base)
        except AtelierError:
            continue
        return
    parse_weights(text)


def summary(lora: Lora, weights: BlockWeights) -> str:
    """What weights do to a LoRA, in lines: layers by weight, and the entries that name none of its layers."""
    names = [*lora.modules, *lora.vectors]
    counts = Counter(weights.of(name) for name in names)
    told = [f"{count} at {weight:g}" for weight, count in sorted(counts.items(), reverse=True) if weight]
    lines = [
        f"{counted(len(names), 'layer')}: "
        + ", ".join([*told[:MOST_TOLD], *(["..."] if len(told) > MOST_TOLD else [])])
    ]
    if counts[0.0]:
        lines.append(f"{counts[0.0]} left out")
    entries = [rule for rule in weights.rules if "=" in rule.text]
    idle = [rule.text for rule in entries if not any(rule.weight(name) is not None for name in names)]
    if idle:
        lines.append(f"no layer of this LoRA is named by: {', '.join(idle)}")
    return "\n".join(lines)

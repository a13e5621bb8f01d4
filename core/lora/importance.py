"""How much each block of a LoRA matters for what the model puts out, not for how large its weights are.

Block by block the LoRA is drawn on without that block, or with that block alone, and the change of the velocity is
measured on a few noise levels. The model comes in as a callable, so that nothing here knows where it runs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..errors import AtelierError
from .formats.names import is_text
from .kinds import Layer
from .places import place_of
from .record import Layers, Lora

# (LoRA or None, noise levels in 0..1) -> velocities [S, ...], one for each level, of the same latents every time
Velocity = Callable[[Lora | None, Sequence[float]], Tensor]
Way = Literal["without", "alone"]


@dataclass(frozen=True)
class Importance:
    """What blocks change: the mean over the noise levels of |difference| / |velocity|.

    whole   the whole LoRA against the base model
    blocks  by block: without it against the whole LoRA, or it alone against the base model
    levels  the same by block, one figure a noise level
    """

    whole: float
    blocks: Mapping[str, float]
    levels: Mapping[str, tuple[float, ...]]

    def weights(self, least: float) -> str:
        """Block weights as text: 0 for blocks that change less than a share of what the strongest does.

        least  0..1
        """
        strongest = max(self.blocks.values())
        off = [block for block, change in self.blocks.items() if change < least * strongest]
        return "\n".join(f"{'other' if block == 'others' else block} = 0" for block in off)

    def cells(self) -> dict[str, float]:
        """The figures as a heat map takes them, one row a kind of blocks."""
        return {f"{block}.change" if block[-1].isdigit() else block: change for block, change in self.blocks.items()}


def blocks_of(lora: Lora) -> list[str]:
    """The blocks of the model that a LoRA changes, in its order; text encoders, which no velocity shows, are none."""
    names = (name for name in (*lora.modules, *lora.vectors) if not is_text(name))
    return list(dict.fromkeys(place_of(name).block for name in names))


def only(lora: Lora, blocks: Collection[str]) -> Lora:
    """A LoRA of some blocks; layers are made when they are asked for."""

    def maker(name: str) -> Callable[[], Layer]:
        return lambda: lora.modules[name]

    kept = {name: maker(name) for name in lora.modules if place_of(name).block in blocks}
    vectors = {name: value for name, value in lora.vectors.items() if place_of(name).block in blocks}
    return replace(lora, modules=Layers(kept), vectors=vectors)


def importance(
    lora: Lora,
    velocity: Velocity,
    sigmas: Sequence[float],
    way: Way = "without",
    seen: Callable[[int], None] = lambda _: None,
) -> Importance:
    """Measure every block of a LoRA by what it changes in the output.

    velocity  the model; called twice, and once more for each block
    sigmas    noise levels, each above 0 and up to 1
    seen      called with the number of calls done
    Raises AtelierError without a noise level, for one out of range, and for a LoRA of text encoders alone.
    """
    odd = next((s for s in sigmas if not 0 < s <= 1), None)
    if not sigmas or odd is not None:
        what = "There is no noise level" if odd is None else f"The noise level is {odd}"
        raise AtelierError(f"{what}. Give numbers above 0 and up to 1, such as 0.9, 0.6, 0.3.")
    blocks = blocks_of(lora)
    if not blocks:
        raise AtelierError(
            "The LoRA changes text encoders alone, which this does not measure. Choose one for the model."
        )
    base = velocity(None, sigmas)
    seen(1)
    full = velocity(lora, sigmas)
    seen(2)
    levels = {}
    for done, block in enumerate(blocks, 3):
        part = only(lora, {block} if way == "alone" else set(blocks) - {block})
        against = base if way == "alone" else full
        left = base if not part.modules and not part.vectors else velocity(part, sigmas)
        levels[block] = relative_change(left, against)
        seen(done)
    whole = relative_change(full, base)
    return Importance(
        sum(whole) / len(whole), {block: sum(values) / len(values) for block, values in levels.items()}, levels
    )


def relative_change(velocity: Tensor, reference: Tensor) -> tuple[float, ...]:
    """|velocity - reference| / |reference| at each noise level; both [S, ...]."""
    one, other = velocity.double().flatten(1), reference.double().flatten(1)
    return tuple(((one - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-12)).tolist())

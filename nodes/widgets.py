"""Option models as node inputs: one field, one widget, with the field's words, limits and default."""

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from comfy_api.latest import io
from pydantic.fields import FieldInfo

from ..core.options import Options, leaves


def inputs_of(kind: type[Options], names: Iterable[str] | None = None, optional: bool = False) -> list:
    """Inputs for an option model's fields, or for those named, in that order.

    optional  an input that a saved prompt lacks has its default, so that prompts outlive options that are added
    """
    fields = leaves(kind)
    return [widget(name, fields[name], optional) for name in names or fields]


def drawing_inputs(seed: str, steps: str = "Sampling steps.", first: int = 20, most: int = 200, side: int = 0) -> list:
    """Seed, steps and guidance of a node that draws pictures.

    seed, steps  tooltips
    first, most  steps
    side         pixels: width and height too, beginning with this; 0 for nodes whose pictures have a size
    """
    found = [
        io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate="fixed", tooltip=seed),
        io.Int.Input("steps", default=first, min=1, max=most, tooltip=steps),
        io.Float.Input("guidance", default=3.5, min=0.0, max=100.0, step=0.1, tooltip="Flux guidance."),
    ]
    for name in ("width", "height") if side else ():
        tooltip = f"{name.capitalize()} in pixels."
        found.append(io.Int.Input(name, default=side, min=64, max=4096, step=16, tooltip=tooltip))
    return found


def widget(name: str, field: FieldInfo, optional: bool = False):
    """One field as a ComfyUI input."""
    common: dict[str, Any] = {"default": field.default, "tooltip": field.description, "optional": optional}
    if get_origin(field.annotation) is Literal:
        return io.Combo.Input(name, options=list(get_args(field.annotation)), **common)
    if field.annotation is bool:
        return io.Boolean.Input(name, **common)
    if field.annotation is int:
        low, high = limit(field, "ge"), limit(field, "le")
        step = limit(field, "multiple_of") or 1
        kept = "fixed" if name == "seed" else None
        return io.Int.Input(name, min=low, max=high, step=step, control_after_generate=kept, **common)
    if field.annotation is float:
        low, high, above, below = (limit(field, which) for which in ("ge", "le", "gt", "lt"))
        # What must stay below 1 is wanted close to it: 0.9999.
        step = 1e-4 if below == 1 else float_step(field.default)
        low = step if low is None and above is not None else low
        return io.Float.Input(name, min=low, max=below - step if below is not None else high, step=step, **common)
    return io.String.Input(name, multiline=name.endswith(("prompt", "rules")), **common)


def limit(field: FieldInfo, which: str):
    """A bound of a field, or None."""
    return next((getattr(m, which) for m in field.metadata if hasattr(m, which)), None)


def float_step(default: float) -> float:
    """A step that suits a value's size: a hundredth of its power of ten, one hundredth for zero and above one."""
    step = 0.01
    while default and abs(default) < step * 10 and step > 1e-7:
        step /= 10
    return round(step, 8)

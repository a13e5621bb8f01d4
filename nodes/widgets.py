"""Option models as node inputs: one field, one widget, with the field's words, limits and default."""

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from comfy_api.latest import io
from pydantic.fields import FieldInfo

from ..core.options import Options, leaves


def inputs_of(kind: type[Options], names: Iterable[str] | None = None) -> list:
    """Inputs for an option model's fields, or for those named, in that order."""
    fields = leaves(kind)
    return [widget(name, fields[name]) for name in names or fields]


def widget(name: str, field: FieldInfo):
    """One field as a ComfyUI input."""
    common: dict[str, Any] = {"default": field.default, "tooltip": field.description}
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
        low, high = limit(field, "ge"), limit(field, "le")
        above = limit(field, "gt")
        step = float_step(field.default)
        return io.Float.Input(
            name, min=step if low is None and above is not None else low, max=high, step=step, **common
        )
    return io.String.Input(name, multiline=name.endswith("prompt"), **common)


def limit(field: FieldInfo, which: str):
    """A bound of a field, or None."""
    return next((getattr(m, which) for m in field.metadata if hasattr(m, which)), None)


def float_step(default: float) -> float:
    """A step that suits a value's size: a hundredth of its power of ten, one hundredth for zero and above one."""
    step = 0.01
    while default and default < step * 10 and step > 1e-7:
        step /= 10
    return round(step, 8)

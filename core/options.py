"""Options are written once: one frozen pydantic model per subject.

Its fields are the TOML keys of a run, the flags of a command and the widgets of a node; an unknown key is an error
that names the nearest one.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import AtelierError


class Options(BaseModel):
    """Base of all option models: frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# What a value should have been, by the beginning of pydantic's name for the error.
KINDS_OF_VALUE = {
    "int_": "a whole number", "float_": "a number", "bool_": "true or false", "string_": "a text", "tuple_": "a list",
    "list_": "a list", "model_": "a table", "dict_": "a table",
}  # fmt: skip
WRITTEN = ("a text", "a list", "a table")

Model = TypeVar("Model", bound=Options)


def parse(kind: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Check values against an option model.

    kind    the option model
    values  as they came from TOML, a command line or a node
    where   how the person knows this place ("config.toml", "Train LoRA")
    Raises AtelierError for the first thing that does not fit.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise AtelierError(explain(kind, error, where)) from None


def explain(kind: type[Options], error: ValidationError, where: str) -> str:
    """Say the first problem of a validation error in two sentences."""
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), known_keys(kind), 1)
        hint = f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known_keys(kind))}."
        return f"{where} has no option called {path}. {hint}"
    if first["type"] == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], (str, int, float)):
            return f"{where}: {reason}."  # a rule between options: it names them itself
        return f"{where}: {path} is {first['input']!r}. {reason}."
    path = ".".join(p for p in first["loc"] if isinstance(p, str) and p in known_keys(kind))
    places = "".join(f" at place {p}" for p in first["loc"] if isinstance(p, int))
    return f"{where}: {path} is {first['input']!r}{places}. {_wanted(field_at(kind, first['loc']), first)}."


def field_at(kind: type[Options], place: tuple[int | str, ...]) -> FieldInfo:
    """The option that a place in the values is about."""
    field = kind.model_fields[str(place[0])]
    inner = field.annotation
    if len(place) > 1 and isinstance(inner, type) and issubclass(inner, Options):
        return field_at(inner, place[1:])
    return field


def _wanted(field: FieldInfo, error: ErrorDetails) -> str:
    """What to give in place of a value: its kind where that is wrong, and the limits that the field has."""
    if error["type"] == "literal_error":
        *others, last = (str(value) for value in literals(field.annotation))
        return f"Choose {', '.join(others)} or {last}" if others else f"Choose {last}"
    what = next((words for start, words in KINDS_OF_VALUE.items() if error["type"].startswith(start)), None)
    if what in WRITTEN:
        return f"Write {what}"
    within = limits(field)
    if not within and not what:
        return error["msg"]
    return "Choose " + ", ".join(part for part in (what, within) if part)


def literals(kind: Any) -> tuple[Any, ...]:
    """The words that a kind of option allows, those of a union's parts together."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in literals(part))


def limits(field: FieldInfo) -> str:
    """A number's limits in words, such as 0 to 2; empty where it has none."""
    low, high, above, below, step = (_bound(field, which) for which in ("ge", "le", "gt", "lt", "multiple_of"))
    if low is not None:
        span = (
            f"{low:g} to {high:g}"
            if high is not None
            else f"from {low:g} to below {below:g}"
            if below
            else f"{low:g} or more"
        )
    elif above is not None:
        end = f" and up to {high:g}" if high is not None else f" and below {below:g}" if below is not None else ""
        span = f"above {above:g}{end}"
    else:
        span = f"up to {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    return ", ".join(part for part in (f"a multiple of {step:g}" if step else "", span) if part)


def _bound(field: FieldInfo, which: str) -> float | None:
    return next((value for m in field.metadata if (value := getattr(m, which, None)) is not None), None)


def known_keys(kind: type[Options]) -> list[str]:
    """Every key of an option model, those of its tables included."""
    keys = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            keys += known_keys(field.annotation)
    return keys


def leaves(kind: type[Options]) -> dict[str, FieldInfo]:
    """Every option that is no table, by its bare name, tables in order; names are unique across the tables.

    These names are the command's flags and the node's inputs.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, Options):
            found |= leaves(table)
        else:
            found[name] = field
    return found


def nest(kind: type[Options], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sort bare names into the tables they belong to; unknown names stay at the top, for parse to refuse."""
    nested: dict[str, Any] = dict(flat)
    for name, field in kind.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, Options):
            inner = {k: nested.pop(k) for k in leaves(table) if k in nested}
            if inner:
                nested[name] = nest(table, inner)
    return nested


def flat(options: Options) -> dict[str, Any]:
    """An option model's values by their bare names."""
    values: dict[str, Any] = {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        values |= flat(value) if isinstance(value, Options) else {name: value}
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises AtelierError with the line that is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AtelierError(f"There is no file {path}. Give the path of a .toml file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AtelierError(f"{path} is not valid TOML: {error}. Correct that place.") from None


def to_toml(options: Options) -> str:
    """Write an option model as TOML, one table per nested model, each key under its description."""
    lines, tables = [], []
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if isinstance(value, Options):
            tables.append(f"\n[{name}]\n{to_toml(value)}")
        elif value is not None:
            lines.append(f"# {field.description}\n{name} = {_literal(value)}")
    return "\n".join(lines) + "\n" + "".join(tables)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    return repr(value)

"""A view as a file: what the command line passes from step to step; pictures and rows stay where they are."""

import json
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType

from ..errors import AtelierError
from ..files import write_json
from .stored import WrittenCaption
from .view import LeftOut, Op, View

VERSION = 2


def values_of(view: View) -> dict[str, object]:
    """What a view holds besides its store, as JSON can hold it."""
    return {
        "ids": view.ids,
        "laid": {own: {name: _plain(name, value) for name, value in laid.items()} for own, laid in view.laid.items()},
        "left_out": [astuple(one) for one in view.left_out],
        "ops": [[op.name, op.settings] for op in view.ops],
        "captions": view.captions,
        "revision": view.revision,
    }


def view_of(store: Path, values: Mapping) -> View:
    """The view that values_of gave away.

    Raises KeyError, TypeError or ValueError for values that are no view's.
    """
    laid = {own: {name: _whole(name, value) for name, value in named.items()} for own, named in values["laid"].items()}
    return View(
        Path(store),
        values["revision"],
        tuple(values["ids"]),
        tuple(Op(name, tuple((key, value) for key, value in settings)) for name, settings in values["ops"]),
        MappingProxyType(laid),
        tuple(LeftOut(*one) for one in values["left_out"]),
        tuple(values["captions"]),
    )


def _plain(name: str, value: object) -> object:
    return [astuple(caption) for caption in value] if name == "captions" else value  # type: ignore[attr-defined]


def _whole(name: str, value: object) -> object:
    if name == "captions":
        return tuple(WrittenCaption(*caption) for caption in value)  # type: ignore[attr-defined]
    return tuple(value) if isinstance(value, list) else value


def write_view(view: View, path: Path) -> Path:
    """Write a view as JSON; the store is named by its absolute path."""
    return write_json(path, {"version": VERSION, "store": str(Path(view.store).resolve()), **values_of(view)})


def read_view(path: Path) -> View:
    """Read a view that write_view wrote; raises AtelierError if it is none, or its store is gone."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise ValueError
        view = view_of(Path(values["store"]), values)
    except FileNotFoundError:
        raise AtelierError(f"There is no file {path}. Load the folder first.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AtelierError(f"{path} is not a saved dataset. Load the folder again to make one.") from None
    if not view.store.is_file():
        raise AtelierError(f"{path} belongs to the store {view.store}, which is gone. Load the folder again.")
    return view

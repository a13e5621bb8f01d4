"""Captions of a dataset's store: where a job over a view finds its pictures and keeps what was made.

with Store(view.store, made=False) as store:
    for step in caption_items(items_of(view), captioner, AskOptions(), StoreLedger(store)):
        ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...core.dataset.opening import root_of
from ...core.dataset.store import Store
from ...core.dataset.stored import StoredRow, WrittenCaption
from ...core.dataset.view import View, base_of
from ...core.files import digest_of
from .ledger import Made
from .prompts import Item


class StoreLedger:
    """Captions in a store: one commit a batch, a row's other captions passed along, a person's never touched."""

    def __init__(self, store: Store):
        self.store = store

    def has(self, row: str, model: str, prompt_hash: str) -> bool:
        """Whether this very caption is there."""
        query = "SELECT 1 FROM captions WHERE row = ? AND author <> 'human' AND model = ? AND prompt = ?"
        return self.store.db.execute(query, (row, model, prompt_hash)).fetchone() is not None

    def is_human(self, row: str) -> bool:
        """Whether a person wrote a caption of this row, in the gallery or in a file beside the picture."""
        query = "SELECT 1 FROM captions WHERE row = ? AND author = 'human'"
        return self.store.db.execute(query, (row,)).fetchone() is not None

    def models(self) -> set[str]:
        """Every model that has a caption in the store."""
        query = "SELECT DISTINCT model FROM captions WHERE author <> 'human'"
        return {model for (model,) in map(tuple, self.store.db.execute(query))}

    def commit(self, batch: Sequence[Made]) -> None:
        """Keep a batch of one model in one commit; its caption takes the place of its last one of that row."""
        rows = {row.id: row for row in self.store.rows(made.row for made in batch)}
        captions = {made.row: _with(rows[made.row], made) for made in batch if made.row in rows}
        if captions:
            self.store.caption(captions, by=batch[0].model, undoable=False)


def _with(row: StoredRow, made: Made) -> list[WrittenCaption]:
    others = [c for c in row.captions if c.author == "human" or c.model != made.model]
    return [*others, WrittenCaption(made.text, "model", made.model, made.prompt_hash, made.seed, made.score)]


def items_of(view: View) -> tuple[Item, ...]:
    """The pictures of a view as a captioner sees them, with the words that are known about each.

    A row's variants share its caption, so a row is one item; rejected rows are left out.
    """
    root = root_of(view)
    rows: dict[str, StoredRow] = {}
    for row in view.rows():
        own = base_of(row.id)
        if row.decision != "reject" and (own not in rows or row.id == own):
            rows[own] = row
    return tuple(_item(own, row, view, root) for own, row in rows.items())


def _item(own: str, row: StoredRow, view: View, root: Path) -> Item:
    ops = view.ops_of(row)
    digest = digest_of(row.digest, row.crop, ops) if row.crop or ops else row.digest
    captions = {c.model or c.author: c.text for c in reversed(row.captions)}
    return Item(own, root / row.path, digest, ", ".join(row.tags), _style(row), captions, row.crop, ops)


def _style(row: StoredRow) -> str:
    """The row's style column, else what a tag style:name says."""
    column = row.columns.get("style")
    tags = (tag.partition(":")[2] for tag in row.tags if tag.casefold().startswith("style:"))
    return column.replace("_", " ") if isinstance(column, str) and column else next(tags, "")


def captioned(view: View, model: str) -> View:
    """A view after a model captioned it: at the store's present revision, this model's captions before other models'.

    Where captions are laid on a row, they would hide the store's, so the model's is laid beside them.
    """
    view = view.renewed().preferring(model)
    laid = [own for own in view.ids if "captions" in view.laid.get(own, {})]
    return view.lay(dict(_laid_beside(view, laid, model))) if laid else view


def _laid_beside(view: View, ids: list[str], model: str) -> Iterator[tuple[str, dict[str, object]]]:
    with Store(view.store, made=False) as store:
        stored = {row.id: row for row in store.rows(dict.fromkeys(map(base_of, ids)))}
        for row in view.rows_in(store, ids):
            mine = [c for c in stored[base_of(row.id)].captions if c.author != "human" and c.model == model]
            others = [c for c in row.captions if c.author == "human" or c.model != model]
            if mine:
                yield row.id, {"captions": tuple([*others, *(replace(c, origin="store") for c in mine)])}

"""What a person changes in the gallery: decisions, stars, tags, captions and crops, each checked, then one commit.

Each is an edit of the store that undo takes back. A variant's id counts as its row.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from ..errors import AtelierError
from ..options import Options
from .paging import Asked, OpenStore
from .stored import WrittenCaption

BY = "human"


Id = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)]


class Request(Options):
    """A request's values, of just the types that are asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def done(self, store: OpenStore, key: str) -> int:
        """Write the change and commit it; returns how many rows it is about. Raises Absent, AtelierError."""
        raise NotImplementedError


class Chosen(Request):
    """The rows that a change is about: by their ids, or all of the view that a filter selects."""

    ids: list[Id] | None = Field(None, description="Rows.")
    filter: str | None = Field(None, description="Filter that selects rows of the view.")

    @model_validator(mode="after")
    def _one(self):
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give ids or a filter, one of the two")
        return self

    def rows(self, store: OpenStore, key: str) -> list[str]:
        """Ids of the stored rows, each once; raises Absent for one that is not there."""
        store.view(key)
        return store.known(store.ids(key, Asked(filter=self.filter or "")) if self.ids is None else self.ids)


class Decide(Chosen):
    """Keep or reject rows, or take the decision back."""

    decision: Literal["keep", "reject"] | None = Field(description="What to do with the rows.")
    reason: Word | None = Field(None, description="Why.")

    def done(self, store: OpenStore, key: str) -> int:
        ids = self.rows(store, key)
        if ids:
            store.store.decide(ids, self.decision, BY, self.reason)
        return len(ids)


class Rate(Chosen):
    """Give rows stars; 0 takes them back."""

    stars: int = Field(ge=0, le=5, description="Stars.")

    def done(self, store: OpenStore, key: str) -> int:
        changes = {own: {"stars": self.stars or None} for own in self.rows(store, key)}
        if changes:
            store.store.edit(changes, BY, "stars")
        return len(changes)


class Tag(Chosen):
    """Put tags on rows and take others off; letters' case makes no other tag."""

    add: list[Word] = Field([], max_length=200, description="Tags to put on.")
    remove: list[Word] = Field([], max_length=200, description="Tags to take off.")

    def done(self, store: OpenStore, key: str) -> int:
        rows = store.store.rows(self.rows(store, key))
        changes = {row.id: {"tags": tags} for row in rows if (tags := self.applied(row.tags)) != row.tags}
        if changes:
            store.store.edit(changes, BY, "tags")
        return len(changes)

    def applied(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Tags in their order with the added ones behind, without those taken off."""
        off = {tag.casefold() for tag in self.remove}
        named = {tag.casefold(): tag for tag in reversed((*tags, *self.add))}
        order = dict.fromkeys(tag.casefold() for tag in (*tags, *self.add))
        return tuple(named[folded] for folded in order if folded not in off)


class Write(Request):
    """A person's captions of a row; none takes them back. What models wrote stays below them."""

    id: Id = Field(description="The row.")
    texts: list[Text] = Field(max_length=64, description="Captions.")

    def done(self, store: OpenStore, key: str) -> int:
        store.view(key)
        row = store.row(self.id)
        human = [WrittenCaption(text) for text in dict.fromkeys(self.texts) if text]
        store.store.caption({row.id: [*human, *(c for c in row.captions if c.author != BY)]}, BY)
        return 1


class Cut(Request):
    """A row's crop in whole pixels, or none."""

    id: Id = Field(description="The row.")
    crop: list[int] | None = Field(min_length=4, max_length=4, description="x, y, width and height.")

    def done(self, store: OpenStore, key: str) -> int:
        store.view(key)
        row = store.row(self.id)
        if self.crop is not None:
            x, y, w, h = self.crop
            if min(x, y) < 0 or min(w, h) < 1 or x + w > row.width or y + h > row.height:
                raise AtelierError(
                    f"The crop {self.crop} leads out of the picture of {row.width} x {row.height}. Choose a place inside it."
                )
        store.store.edit({row.id: {"crop": self.crop}}, BY, "crop")
        return 1


WRITES: dict[str, type[Request]] = {"decide": Decide, "stars": Rate, "tags": Tag, "caption": Write, "crop": Cut}


def change(store: OpenStore, key: str, wanted: Request) -> dict:
    """Do a change and commit it."""
    with store.lock:
        changed = wanted.done(store, key)
        return {"changed": changed, "revision": store.store.revision}


def undo(store: OpenStore) -> dict:
    """Take back what a person last changed or had a node change; what nodes found meanwhile stays."""
    with store.lock:
        return {"undone": store.store.undo(), "revision": store.store.revision}

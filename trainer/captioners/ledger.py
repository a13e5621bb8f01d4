"""Where captions go, batch by batch, and what is there already."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ...core.errors import AtelierError
from ...core.files import append_line


@dataclass(frozen=True)
class Made:
    """A caption that a model made: of which row, by which model, asked what (as a hash), with which seed and score."""

    row: str
    text: str
    model: str
    prompt_hash: str
    seed: int = 0
    score: float | None = None


def check_author(name: str) -> None:
    """Raise AtelierError for a name that a model's captions cannot have."""
    if name.strip() in ("", "human"):
        raise AtelierError(f"The name of the captions is {name!r}. Give a name that is no person's, such as fused.")


class Ledger(Protocol):
    """What a captioning job asks of a store."""

    def has(self, row: str, model: str, prompt_hash: str) -> bool:
        """Whether this very caption was made already."""
        ...

    def is_human(self, row: str) -> bool:
        """Whether a person wrote a caption for this row; models then leave it alone."""
        ...

    def commit(self, batch: Sequence[Made]) -> None:
        """Keep a batch, whole or not at all."""
        ...


class FileLedger:
    """Captions in a text file, one batch a line; a line cut short by a crash is passed over."""

    def __init__(self, path: Path, human: frozenset[str] = frozenset()):
        """Read what the file holds.

        human  rows that a person captioned
        """
        self.path, self.human = Path(path), human
        self.made: dict[tuple[str, str, str], Made] = {}
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        for line in lines:
            try:
                self._take([Made(**entry) for entry in json.loads(line)])
            except (json.JSONDecodeError, TypeError):
                continue

    def has(self, row: str, model: str, prompt_hash: str) -> bool:
        return (row, model, prompt_hash) in self.made

    def is_human(self, row: str) -> bool:
        return row in self.human

    def commit(self, batch: Sequence[Made]) -> None:
        append_line(self.path, json.dumps([asdict(made) for made in batch]))
        self._take(batch)

    def _take(self, batch: Sequence[Made]) -> None:
        self.made |= {(made.row, made.model, made.prompt_hash): made for made in batch}

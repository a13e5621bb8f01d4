"""A captioning job: pictures in batches, each batch kept before the next is asked.

A job that was killed goes on where it was: what was made for the same row, by the same model, asked the same, is not
made again, and at most the batch under way is lost. A row that a person captioned is left alone; that is looked up
before a batch is asked and once more before it is kept. A preview is the same job over one picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from PIL import Image

from ...core.dataset.folder import open_picture
from ...core.dataset.replay import replay
from ...core.errors import AtelierError
from ...core.files import digest_of
from .ledger import Ledger, Made
from .options import AskOptions
from .prompts import Ask, Item, check_template, fill, split_turns

EXAMPLES = 8  # captions that a summary shows


class Captioner(Protocol):
    """What answers: a model in a folder, a tagger, an endpoint."""

    name: str
    prompt: str

    @property
    def settings(self) -> dict:
        """What changes an answer besides what is asked."""
        ...

    def caption(self, pictures: Sequence[Image.Image], asks: Sequence[Ask]) -> list[str]:
        """One text a picture."""
        ...


@dataclass(frozen=True)
class Failed:
    """A picture that got no caption, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """After a batch: what it made and what failed; `done` of `total` counts every item, those passed over too."""

    done: int
    total: int
    made: tuple[Made, ...] = ()
    failed: tuple[Failed, ...] = ()
    locked: int = 0  # items with a human's caption, so far
    known: int = 0  # items captioned the same way before, so far


@dataclass
class Tally:
    """What a job did so far, for a person."""

    made: int = 0
    known: int = 0
    locked: int = 0
    failed: list[Failed] = field(default_factory=list)
    examples: list[Made] = field(default_factory=list)

    def add(self, step: Progress) -> None:
        """Count one more batch."""
        self.made += len(step.made)
        self.known, self.locked = step.known, step.locked
        self.failed += step.failed
        self.examples += step.made[: EXAMPLES - len(self.examples)]

    def lines(self, captioner: str, names: Mapping[str, str]) -> list[str]:
        """A summary, what failed, and examples.

        names  what a person knows a row by
        """
        told = [f"{self.made} captions by {captioner}"]
        told += [f"{self.known} were there already"] * bool(self.known)
        told += [f"{self.locked} left alone, a person captioned them"] * bool(self.locked)
        told += [f"{len(self.failed)} failed"] * bool(self.failed)
        failed = [f"failed {names.get(one.row, one.row)}: {one.reason}" for one in self.failed]
        examples = [f"{names.get(one.row, one.row)}: {one.text}" for one in self.examples]
        return [", ".join(told), *failed, *examples]


class _Task(NamedTuple):
    item: Item
    ask: Ask
    prompt_hash: str


class _Batch(NamedTuple):
    tasks: list[_Task]
    pictures: list[Image.Image]
    failed: list[Failed]


def caption_items(
    items: Sequence[Item], captioner: Captioner, options: AskOptions, ledger: Ledger
) -> Iterator[Progress]:
    """Caption pictures batch by batch; each batch is in the ledger when it is yielded.

    items      the pictures and the words known about them
    captioner  what answers
    options    what is asked
    ledger     where captions go, and what is there
    ->         a Progress after every batch, one at least
    Raises AtelierError for a variable that is not known, and what the captioner raises; batches kept before stay.
    """
    turns = split_turns(options.prompt or captioner.prompt)
    for turn in (*turns, options.system):
        check_template(turn)
    check_template(options.caption, answer=True)
    run = _Run(items, captioner, options, ledger)
    with closing(run.batches(turns)) as batches:
        for batch in batches:
            yield run.answer(batch)
    if not run.yielded:
        yield run.progress([], [])


@dataclass
class _Run:
    """Counts of a job under way."""

    items: Sequence[Item]
    captioner: Captioner
    options: AskOptions
    ledger: Ledger
    done: int = 0
    locked: int = 0
    known: int = 0
    yielded: bool = False

    def batches(self, turns: tuple[str, ...]) -> Iterator[_Batch]:
        """Batches with their pictures open; the next one is read while this one is answered."""
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[_Batch] | None = None
            for tasks, failed in self._grouped(turns):
                following = pool.submit(_read, tasks, failed)
                if ahead:
                    yield ahead.result()
                ahead = following
            if ahead:
                yield ahead.result()

    def answer(self, batch: _Batch) -> Progress:
        """Ask about a batch and keep what came of it."""
        captioner, options = self.captioner, self.options
        answers = captioner.caption(batch.pictures, [t.ask for t in batch.tasks]) if batch.tasks else []
        made, failed = [], list(batch.failed)
        for task, answer in zip(batch.tasks, answers, strict=True):
            if self.ledger.is_human(task.item.id):  # written while the model was at work
                self.locked += 1
                self.done += 1
            elif not answer:
                failed.append(Failed(task.item.id, f"{captioner.name} answered nothing"))
            else:
                text = fill(options.caption, task.item, options.trigger, answer)
                made.append(
                    Made(task.item.id, text, captioner.name, task.prompt_hash, captioner.settings.get("seed", 0))
                )
        if made:
            self.ledger.commit(made)
        return self.progress(made, failed)

    def progress(self, made: list[Made], failed: list[Failed]) -> Progress:
        self.yielded = True
        self.done += len(made) + len(failed)
        return Progress(self.done, len(self.items), tuple(made), tuple(failed), self.locked, self.known)

    def _grouped(self, turns: tuple[str, ...]) -> Iterator[tuple[list[_Task], list[Failed]]]:
        tasks: list[_Task] = []
        failed: list[Failed] = []
        for item in self.items:
            if self.ledger.is_human(item.id):
                self.locked += 1
                self.done += 1
                continue
            try:
                task = self._task(item, turns)
            except AtelierError as error:
                failed.append(Failed(item.id, str(error)))
                continue
            if self.ledger.has(item.id, self.captioner.name, task.prompt_hash):
                self.known += 1
                self.done += 1
                continue
            tasks.append(task)
            if len(tasks) == self.options.batch_size:
                yield tasks, failed
                tasks, failed = [], []
        if tasks or failed:
            yield tasks, failed

    def _task(self, item: Item, turns: tuple[str, ...]) -> _Task:
        options = self.options
        ask = Ask(
            tuple(fill(turn, item, options.trigger) for turn in turns), fill(options.system, item, options.trigger)
        )
        around = fill(options.caption, item, options.trigger, "{answer}")
        return _Task(item, ask, digest_of(item.digest, ask.turns, ask.system, around, self.captioner.settings))


def open_item(item: Item) -> Image.Image:
    """Open an item's picture as it is seen: RGB, cut and worked on as its row says; raises AtelierError that names it."""
    return replay(open_picture(item.file), item.crop, item.ops)


def _read(tasks: list[_Task], failed: list[Failed]) -> _Batch:
    opened, pictures, broken = [], [], list(failed)
    for task in tasks:
        try:
            pictures.append(open_item(task.item))
            opened.append(task)
        except AtelierError as error:
            broken.append(Failed(task.item.id, str(error)))
    return _Batch(opened, pictures, broken)

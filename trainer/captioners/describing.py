"""Style, medium and artist of a view's pictures, by comparing them with a vocabulary: tags, and captions if asked."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...core.dataset.view import View, base_of
from ...core.errors import AtelierError
from ...core.files import digest_of
from .interrogator import VOCABULARY, Axis, Calibration, Interrogator, Verdict, read_vocabulary
from .job import Failed, open_item
from .ledger import Made
from .options import StyleOptions
from .prompts import Item
from .store_ledger import StoreLedger, items_of


@dataclass(frozen=True)
class Described:
    """After a batch: verdicts by row and axis, pictures that failed, and how far it is."""

    done: int
    total: int
    found: Mapping[str, Mapping[str, Verdict]]
    failed: tuple[Failed, ...] = ()


def axes_of(options: StyleOptions) -> dict[str, Axis]:
    """The axes of the vocabulary that are asked for.

    Raises AtelierError if the file cannot be read, or has no such axis.
    """
    axes = read_vocabulary(Path(options.vocabulary).expanduser() if options.vocabulary.strip() else VOCABULARY)
    wanted = [name.strip() for name in options.axes.split(",") if name.strip()] or list(axes)
    unknown = next((name for name in wanted if name not in axes), None)
    if unknown is not None:
        raise AtelierError(f"The vocabulary has no axis {unknown}. It has {', '.join(axes)}.")
    return {name: axes[name] for name in wanted}


def describe(
    view: View, folder: Path, options: StyleOptions, device: Callable[[], torch.device], ledger: StoreLedger
) -> Iterator[Described]:
    """Compare a view's pictures with the vocabulary, batch by batch; captions are in the store when one is yielded.

    folder  of a CLIP or SigLIP model; its name is the author of the captions
    device  gives the device when the model is loaded
    ->      a Described after every batch
    Raises AtelierError for a vocabulary or model that cannot be used.
    """
    axes = axes_of(options)
    items = items_of(view)
    if not items:
        yield Described(0, 0, {})
        return
    model = Interrogator(folder, device(), axes)
    calibrations = dict.fromkeys(axes, Calibration(options.temperature, options.threshold))
    asked = digest_of(
        {name: [a.templates, a.entries] for name, a in axes.items()}, options.threshold, options.temperature
    )
    done = 0
    for start in range(0, len(items), options.batch_size):
        batch = items[start : start + options.batch_size]
        opened, pictures, failed = [], [], []
        for item in batch:
            try:
                pictures.append(open_item(item))
                opened.append(item)
            except AtelierError as error:
                failed.append(Failed(item.id, str(error)))
        verdicts = model.verdicts(pictures, calibrations) if pictures else []
        found = {item.id: verdict for item, verdict in zip(opened, verdicts, strict=True)}
        if options.captions:
            _keep(ledger, opened, found, Path(folder).name, asked)
        done += len(batch)
        yield Described(done, len(items), found, tuple(failed))


def _keep(ledger: StoreLedger, items: Sequence[Item], found: Mapping, model: str, asked: str) -> None:
    made = []
    for item in items:
        sure = [verdict for verdict in found[item.id].values() if verdict.name]
        free = not ledger.is_human(item.id) and not ledger.has(item.id, model, asked)
        if sure and free:
            text = ", ".join(verdict.name for verdict in sure)
            made.append(Made(item.id, text, model, asked, 0, min(verdict.probability for verdict in sure)))
    if made:
        ledger.commit(made)


def tagged(view: View, found: Mapping[str, Mapping[str, Verdict]]) -> View:
    """Lay what was found as tags axis:name, in place of older ones of these axes; an axis without verdict has none."""
    laid = {}
    for row in view.rows():
        verdicts = found.get(base_of(row.id))
        if verdicts is None:
            continue
        heads = tuple(f"{axis}:".casefold() for axis in verdicts)
        others = [tag for tag in row.tags if not tag.casefold().startswith(heads)]
        laid[row.id] = {"tags": (*others, *(f"{axis}:{v.name}" for axis, v in verdicts.items() if v.name))}
    return view.lay(laid) if laid else view


def distribution(found: Mapping[str, Mapping[str, Verdict]]) -> list[str]:
    """One line an axis: how many pictures each entry has, the most first, and of how many nothing is said."""
    lines = []
    for axis in dict.fromkeys(axis for verdicts in found.values() for axis in verdicts):
        counts = Counter(verdicts[axis].name for verdicts in found.values() if axis in verdicts)
        none = counts.pop("", 0)
        said = [f"{name} {count}" for name, count in counts.most_common()]
        lines.append(f"{axis}: {', '.join([*said, f'nothing stands out in {none}'])}")
    return lines

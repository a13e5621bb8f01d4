"""Fusion over a view: the captions that models wrote for each picture become one, with the support of every claim."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...core.dataset.claims import Fusion, FusionPlan, Statement, estimate_tokens, fuse
from ...core.dataset.view import View
from ...core.errors import AtelierError
from ...core.files import digest_of
from .interrogator import Likeness
from .job import open_item
from .ledger import Made, check_author
from .options import FuseOptions
from .prompts import Item
from .store_ledger import StoreLedger, items_of

BATCH = 32  # pictures of one commit
HUMAN = "human"


@dataclass(frozen=True)
class Fused:
    """After a batch: each row's path and fusion, which of them are in the store, and how far it is.

    made    fusions that are kept as captions
    bare    paths of rows of which too few models speak, or no claim has enough support
    locked  rows with a person's caption, so far
    """

    done: int
    total: int
    made: tuple[tuple[str, Fusion], ...] = ()
    bare: tuple[str, ...] = ()
    locked: int = 0


def read_weights(text: str) -> dict[str, float]:
    """Weights by model from lines such as `joy: 1.5`.

    Raises AtelierError that shows the line that is not understood.
    """
    weights = {}
    for line in _lines(text):
        model, _, number = line.rpartition(":")
        try:
            weights[model.strip()] = float(number)
        except ValueError:
            model = ""
        if not model.strip() or not 0 <= weights[model.strip()] < float("inf"):
            raise AtelierError(f"The weight {line!r} is not understood. Write a line as joy: 1.5, with 0 or more.")
    return weights


def read_synonyms(text: str) -> dict[str, str]:
    """Pairs from lines such as `puppy = dog`; raises AtelierError that shows the line that is not understood."""
    pairs = {}
    for line in _lines(text):
        word, _, same = (part.strip() for part in line.partition("="))
        if not word or not same:
            raise AtelierError(f"The synonym {line!r} is not understood. Write a line as puppy = dog.")
        pairs[word] = same
    return pairs


def _lines(text: str) -> list[str]:
    """Lines that are not empty; a semicolon ends one as well, for the command line."""
    return [line.strip() for line in re.split(r"[\n;]", text) if line.strip()]


def check_fusion(options: FuseOptions) -> None:
    """Raise AtelierError for rules that cannot be read, or a prefix over the budget."""
    read_weights(options.weight_rules)
    read_synonyms(options.synonym_rules)
    fuse([], FusionPlan(options.threshold, options.budget, options.prefix))


def fuse_view(
    view: View, options: FuseOptions, name: str, ledger: StoreLedger, likeness: Likeness | None = None
) -> Iterator[Fused]:
    """Fuse the captions of a view's rows, batch by batch; each batch is in the store when it is yielded.

    name      author of the fused captions; what it wrote before is no statement, and a person's captions lock a row
    likeness  compares claims with the picture, for re-ranking; None for none
    ->        a Fused after every batch, one at least
    Raises as check_fusion, and AtelierError if no caption of the view is by a model with a weight, or a picture fails.
    """
    check_author(name)
    check_fusion(options)
    items, weights = items_of(view), read_weights(options.weight_rules)
    known = ({model for item in items for model in item.captions} | ledger.models()) - {name, HUMAN}
    missing = next((model for model in weights if model not in known), None)
    if missing is not None:
        raise AtelierError(
            f"{missing} has no caption in this dataset. Give weights to {', '.join(sorted(known)) or 'models that spoke'}."
        )
    done = locked = 0
    for start in range(0, max(len(items), 1), BATCH):
        batch = items[start : start + BATCH]
        made, bare, kept = [], [], []
        for item in batch:
            if ledger.is_human(item.id):
                locked += 1
                continue
            statements = _statements(item, weights, name)
            fusion = _fuse(item, statements, options, likeness)
            if any(claim.fate == "kept" for claim in fusion.claims):
                made.append((item.file.name, fusion))
                asked = digest_of([[s.model, s.caption, s.weight] for s in statements], options.model_dump())
                kept.append(Made(item.id, fusion.text, name, asked, 0, score_of(fusion, statements)))
            else:
                bare.append(item.file.name)
        news = [one for one in kept if not ledger.has(one.row, one.model, one.prompt_hash)]
        if news:
            ledger.commit(news)
        done += len(batch)
        yield Fused(done, len(items), tuple(made), tuple(bare), locked)


def _statements(item: Item, weights: dict[str, float], name: str) -> list[Statement]:
    spoken = {model: text for model, text in item.captions.items() if model not in (name, HUMAN)}
    return [Statement(model, text, weights.get(model, 1.0)) for model, text in spoken.items()]


def _fuse(item: Item, statements: Sequence[Statement], options: FuseOptions, likeness: Likeness | None) -> Fusion:
    score = likeness.to(open_item(item)) if likeness else None
    synonyms = read_synonyms(options.synonym_rules)
    plan = FusionPlan(options.threshold, options.budget, options.prefix, score, options.pull, synonyms, estimate_tokens)
    return fuse(statements, plan)


def score_of(fusion: Fusion, statements: Sequence[Statement]) -> float:
    """Mean support of the claims kept, as a share of all weights: 1 where every model says all of it."""
    whole = sum(s.weight for s in statements)
    kept = [claim.support for claim in fusion.claims if claim.fate == "kept"]
    return sum(kept) / len(kept) / whole if kept and whole else 0.0


def fates(fusions: Sequence[Fusion]) -> dict[str, int]:
    """How many claims of some fusions met each fate."""
    return dict(Counter(claim.fate for fusion in fusions for claim in fusion.claims))


def support_table(name: str, fusion: Fusion) -> str:
    """One picture's fusion for a person: the caption, then each claim with its support, its models and its fate."""
    rows = [f"  {c.support:4.1f}  {c.fate:<12} {c.text}  ({', '.join(c.models)})" for c in fusion.claims]
    return "\n".join([f"{name}: {fusion.text}", *rows])

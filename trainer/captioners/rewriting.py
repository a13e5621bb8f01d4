"""Captions of a view as texts by name, and edits of them: linted, searched and replaced, kept in the store with an undo.

Only captions that count are looked at: a person's, else those of the model that the view prefers. A name is the
picture's path, with a number where a picture has several.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ...core.dataset.edit import Search, dedupe_tags, order_tags, replace_all, shuffle_tags, split_tags, with_ends
from ...core.dataset.lint import Edit, Finding, LintRules, lint, mend
from ...core.dataset.store import Store
from ...core.dataset.stored import WrittenCaption, counting_places
from ...core.dataset.view import View
from ...core.errors import AtelierError
from ...core.files import digest_of
from .options import EditOptions, LintOptions

ANEW = ("empty", "refusal", "alike")  # what is mended so that it is captioned anew


@dataclass(frozen=True)
class Written:
    """A caption that counts: its row's id, its place among the row's captions, and the caption."""

    row: str
    place: int
    caption: WrittenCaption

    @property
    def human(self) -> bool:
        return self.caption.author == "human"


def counting(view: View) -> dict[str, Written]:
    """The captions of a view that count, by name; variants share their row's, unless theirs are laid on them."""
    named: dict[str, Written] = {}
    for row in view.kept_rows():
        if "+" in row.id and "captions" not in view.laid.get(row.id, {}):
            continue
        number = row.id.partition("+")[2]
        for at, place in enumerate(counting_places(row.captions, view.captions)):
            name = row.path + (f" +{number}" if number else "") + (f" ({at + 1})" if at else "")
            named[name] = Written(row.id, place, row.captions[place])
    return named


def texts_of(named: Mapping[str, Written]) -> dict[str, str]:
    """Texts by name."""
    return {name: one.caption.text for name, one in named.items()}


def rewritten(view: View, edit: Edit, by: str, anew: Collection[str] = ()) -> View:
    """Keep an edit: in the store, in one commit that undo takes back; laid captions are laid again.

    edit  by names of `counting`; a caption that becomes empty is taken away
    by    the node; the commit is a person's where captions of a person change
    anew  names whose captions a model may make again
    Raises AtelierError if a caption was changed meanwhile.
    """
    named = counting(view)
    edit.apply(texts_of(named))
    changed: dict[str, dict[int, WrittenCaption | None]] = {}
    for name, text in edit.after.items():
        one = named[name]
        prompt = "" if name in anew else one.caption.prompt
        made = replace(one.caption, text=text, origin="store", prompt=prompt) if text else None
        changed.setdefault(one.row, {})[one.place] = made
    own = {row: "captions" in view.laid.get(row, {}) for row in changed}
    with Store(view.store, made=False) as store:
        rows = {row.id: row.captions for row in view.rows_in(store, changed)}
        after = {row: _after(rows[row], changes) for row, changes in changed.items()}
        stored = {row: captions for row, captions in after.items() if not own[row]}
        if stored:
            human = any(named[name].human for name in edit.after if not own[named[name].row])
            store.caption(stored, by="human" if human else by)
    laid = {row: {"captions": tuple(captions)} for row, captions in after.items() if own[row]}
    return (view.lay(laid) if laid else view).renewed()


def _after(captions: Sequence[WrittenCaption], changes: Mapping[int, WrittenCaption | None]) -> list[WrittenCaption]:
    new = [changes.get(place, caption) for place, caption in enumerate(captions)]
    return [caption for caption in new if caption]


# --- lint ---


@dataclass(frozen=True)
class Linted:
    """What was found in a view's captions, and the edit that mends it."""

    captions: Mapping[str, str]
    findings: tuple[Finding, ...]
    edit: Edit
    anew: frozenset[str]
    human: int  # captions of a person that have a finding and are left as they are

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind; those of one caption count each."""
        kinds = [finding.kind for finding in self.findings]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def rules_of(options: LintOptions) -> LintRules:
    """Options as the rules that captions are held to."""
    allowed = tuple(part.strip() for part in options.allowed.split(",") if part.strip())
    return LintRules(options.trigger.strip(), allowed, options.share, options.budget, options.alike)


def lint_view(view: View, options: LintOptions) -> Linted:
    """Find the faults of a view's captions, and the one edit that mends all that is asked for; nothing is changed."""
    named, rules = counting(view), rules_of(options)
    captions = texts_of(named)
    findings = tuple(lint(captions, rules))
    asked = {
        "leak": options.fix_leaks, "trigger": options.fix_triggers, "refusal": options.fix_refusals,
        "overflow": options.fix_overflow, "alike": options.fix_alike,
    }  # fmt: skip
    wanted = [finding for finding in findings if asked.get(finding.kind)]
    # The trigger goes in before a long caption is cut, and a leak goes out before: lengths are those of the result.
    order = ("refusal", "alike", "leak", "trigger", "overflow")
    free = {name for name, one in named.items() if options.human or not one.human}
    mended = dict(captions)
    for finding in sorted(_together(wanted), key=lambda f: order.index(f.kind)):
        rows = tuple(name for name in finding.rows if name in free)
        mended = mend(replace(finding, rows=rows), mended, rules).apply(mended)
    mended = _cut_again(mended, free, rules) if options.fix_overflow else mended
    changed = [name for name in captions if mended[name] != captions[name]]
    edit = Edit({name: captions[name] for name in changed}, {name: mended[name] for name in changed})
    anew = frozenset(name for finding in wanted if finding.kind in ANEW for name in finding.rows if name in free)
    human = {name for finding in wanted for name in finding.rows} - free
    return Linted(captions, findings, edit, anew, len(human))


def _together(findings: Sequence[Finding]) -> list[Finding]:
    """Findings of one caption each as one finding by kind, so that thousands are mended at once."""
    leaks = [finding for finding in findings if finding.kind == "leak"]
    rows: dict[str, list[str]] = {}
    for finding in findings:
        if finding.kind != "leak":
            rows.setdefault(finding.kind, []).extend(finding.rows)
    return [*leaks, *(Finding(kind, tuple(named), "", "") for kind, named in rows.items())]


def _cut_again(captions: dict[str, str], free: set[str], rules: LintRules) -> dict[str, str]:
    """A trigger that was put in front may have taken a caption over its budget."""
    long = tuple(name for name in free if rules.count(captions[name]) > rules.budget)
    return mend(Finding("overflow", long, "", ""), captions, rules).apply(captions)


# --- edits ---


@dataclass(frozen=True)
class Edited:
    """What an edit would change."""

    captions: Mapping[str, str]
    edit: Edit
    human: int  # captions of a person that would change and are left as they are
    done: int  # captions that are as this very edit left them


def check_edit(options: EditOptions) -> None:
    """Raise AtelierError where an edit has nothing to do, or its search cannot be used."""
    if not any((options.find, options.prefix, options.suffix, options.dedupe, options.order.strip(), options.shuffle)):
        raise AtelierError(
            "The edit has nothing to do. Give find, prefix, suffix or order, or switch on dedupe or shuffle."
        )
    if options.find:
        replace_all([""], _search(options))


def _search(options: EditOptions) -> Search:
    return Search(options.find, options.replacement, options.regex, options.same_case, options.whole_words)


def edit_texts(captions: Mapping[str, str], options: EditOptions) -> dict[str, str]:
    """Texts by name after an edit; the order of a shuffle follows from the seed and the name.

    Raises AtelierError for a search that fails or takes too long.
    """
    texts = list(captions.values())
    if options.find:
        texts = replace_all(texts, _search(options))
    order = split_tags(options.order)
    steps: list[Callable[[str, str], str]] = []
    if options.dedupe:
        steps.append(lambda text, _: dedupe_tags(text))
    if order:
        steps.append(lambda text, _: order_tags(text, order))
    if options.shuffle:
        steps.append(lambda text, name: shuffle_tags(text, options.keep, random.Random(f"{options.seed} {name}")))
    if options.prefix or options.suffix:
        steps.append(lambda text, _: with_ends(text, options.prefix, options.suffix))
    edited = {}
    for name, text in zip(captions, texts, strict=True):
        for step in steps:
            text = step(text, name)
        edited[name] = text.strip()
    return edited


def edit_view(view: View, options: EditOptions) -> Edited:
    """What an edit would change in a view's captions; what it changed before and nobody changed since, it leaves.

    Raises as check_edit and edit_texts.
    """
    check_edit(options)
    named = counting(view)
    with Store(view.store, made=False) as store:
        known = json.loads(store.meta(_key(options)) or "{}")
    captions = texts_of(named)
    left = {name: text for name, text in captions.items() if known.get(name) != digest_of(text, size=8)}
    after = edit_texts(left, options)
    changed = [name for name in left if after[name] != captions[name].strip()]
    free = [name for name in changed if options.human or not named[name].human]
    edit = Edit({name: captions[name] for name in free}, {name: after[name] for name in free})
    return Edited(captions, edit, len(changed) - len(free), len(captions) - len(left))


def keep_edit(view: View, found: Edited, options: EditOptions, by: str) -> View:
    """Keep what edit_view found, and remember it: a queue that runs again must not edit again."""
    view = rewritten(view, found.edit, by)
    with Store(view.store, made=False) as store:
        known = json.loads(store.meta(_key(options)) or "{}")
        known |= {name: digest_of(text, size=8) for name, text in found.edit.after.items()}
        store.set_meta(_key(options), json.dumps(known))
    return view.renewed()


def _key(options: EditOptions) -> str:
    return f"edit {digest_of(options.model_dump(exclude={'human'}), size=8)}"


# --- reports ---


def lint_lines(found: Linted, shown: int = 40) -> list[str]:
    """What was found, for a person: counts by kind, then each fault with the captions that have it."""
    if not found.findings:
        return [f"{len(found.captions)} captions, nothing found"]
    counted = ", ".join(f"{count} {kind}" for kind, count in found.counts.items())
    lines = [f"{len(found.captions)} captions: {counted}"]
    for finding in found.findings[:shown]:
        more = f" and {len(finding.rows) - 3} more" if len(finding.rows) > 3 else ""
        lines.append(f"{finding.kind}: {', '.join(finding.rows[:3])}{more}: {finding.says}")
    return lines + [f"and {len(found.findings) - shown} more findings"] * (len(found.findings) > shown)


def edit_lines(edit: Edit, kept: bool, human: int, shown: int = 200) -> list[str]:
    """What an edit changed, or would change, as a diff, for a person.

    kept   whether it was done
    human  captions of a person that it leaves as they are
    """
    done = "changed; one undo takes it back" if kept else "would change; choose apply to change them"
    diff = edit.diff().splitlines()
    lines = [
        f"{len(edit.after)} captions {done}"
        if edit.after
        else "no caption would change"
        if not kept
        else "no caption changed"
    ]
    lines += [f"{human} of a person left as they are; switch human on to include them"] * bool(human)
    return [*lines, *diff[:shown], *([f"and {len(diff) - shown} more lines"] * (len(diff) > shown))]

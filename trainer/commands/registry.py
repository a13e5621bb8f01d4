"""loras and header: the table of a person's LoRAs, and what a file says of itself."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ...core.errors import AtelierError
from ...core.lora.header import edit_header, hash_file, read_header
from ...core.lora.record import Base
from ...core.lora.registry import Entry, Registry, add_score, annotate, forget_missing, open_registry
from ...core.lora.scan import record, scan
from ...core.lora.search import Sort, copies, family, resolve, search

SHOWN = 120  # letters of a header's entry


def add_loras(parser) -> None:
    parser.add_argument("--registry", type=Path, default=Path("loras.sqlite"), help="the registry's file")
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    add_actions(actions)
    for action in actions.choices.values():  # before the action or after it; absent after it leaves what was before
        action.add_argument("--registry", type=Path, default=argparse.SUPPRESS, help="the registry's file")


def add_actions(actions) -> None:
    one = actions.add_parser("scan", help="read folders of LoRAs; only changed files are read again")
    one.add_argument("folders", type=Path, nargs="+", help="folders with all below them, or files")
    one.add_argument("--again", action="store_true", help="also read the files that look unchanged")
    one = actions.add_parser("find", help="list the LoRAs that have all of these words")
    one.add_argument("words", nargs="*", help="parts of names, triggers, tags, comments, notes, hashes")
    one.add_argument("--base", choices=get_args(Base), default="", help="kind of model")
    one.add_argument("--sort", choices=get_args(Sort), default="name", help="order")
    one.add_argument("--limit", type=int, default=100, help="how many at most")
    one.add_argument("--missing", action="store_true", help="also those whose file is gone")
    one = actions.add_parser("show", help="all about one LoRA, and what it was made of")
    one.add_argument("lora", help="start of a hash, a path, or a file's name")
    one = actions.add_parser("score", help="keep a figure of a LoRA")
    one.add_argument("lora", help="start of a hash, a path, or a file's name")
    one.add_argument("name", help="what was measured")
    one.add_argument("value", type=float, help="the figure")
    one = actions.add_parser("note", help="keep notes on a LoRA")
    one.add_argument("lora", help="start of a hash, a path, or a file's name")
    one.add_argument("notes", help="the text; it takes the place of older notes")
    actions.add_parser("forget", help="remove what is gone, with its notes and scores")


def run_loras(args) -> Iterator[str]:
    with open_registry(args.registry) as registry:
        if registry.told:
            yield registry.told
        yield from ACTIONS[args.action](registry, args)


def run_scan(registry: Registry, args) -> Iterator[str]:
    counts = dict.fromkeys(("read", "unchanged", "unreadable", "gone"), 0)
    for step in scan(registry, args.folders, args.again):
        counts[step.state] += 1
        if step.state != "unchanged":
            yield f"{step.done}/{step.total} {step.path}: {step.problem or step.state}"
    yield f"{registry.path}: " + ", ".join(f"{number} {state}" for state, number in counts.items())


def run_find(registry: Registry, args) -> Iterator[str]:
    found = search(registry, " ".join(args.words), args.base, args.sort, args.limit, args.missing)
    yield from map(line_of, found)
    yield f"{len(found)} found"


def line_of(entry: Entry) -> str:
    """An entry in one line."""
    if entry.problem:
        return f"{'-' * 10}  {entry.path}: {entry.problem}"
    about = [entry.base, "/".join(entry.kinds), f"rank {entry.rank}", f"{entry.size / 2**20:.1f} MiB"]
    about += [", ".join(entry.triggers)] if entry.triggers else []
    about += [f"{name} {value:g}" for name, value in entry.scores.items()]
    return f"{entry.hash[:10]}  {entry.path}: {'; '.join(about)}{' (gone)' if entry.missing else ''}"


def run_show(registry: Registry, args) -> Iterator[str]:
    entry = resolve(registry, args.lora)
    yield line_of(entry)
    facts = {
        "identity": entry.hash, "sha256": entry.sha256, "AutoV2": entry.sha256[:10].upper(),
        "AutoV3": entry.tensors_sha256[:12], "layout": f"{entry.layout} {entry.dtype}", "layers": entry.layers,
        "alpha": entry.alpha, "title": entry.title, "comment": entry.comment, "tags": ", ".join(entry.tags),
        "notes": entry.notes,
    }  # fmt: skip
    yield from (f"  {name}: {value}" for name, value in facts.items() if value not in ("", None))
    yield from (f"  {name}: {short(value)}" for name, value in entry.provenance.items())
    yield from (f"  the same LoRA: {copy.path}" for copy in copies(registry, entry)[1:])
    for kin in family(registry, entry.hash):
        what = "made of" if kin.generation < 0 else "used in"
        steps = f", {abs(kin.generation)} steps away" if abs(kin.generation) > 1 else ""
        where = kin.entry.path if kin.entry else "no file"
        yield f"  {what}: {kin.hash[:10] or '-' * 10} {kin.name} ({where}{steps}{', by name' if kin.by_name else ''})"


def short(value: object) -> str:
    """A value in one line that is not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def run_score(registry: Registry, args) -> Iterator[str]:
    entry = resolve(registry, args.lora)
    add_score(registry, entry.hash, args.name, args.value)
    yield f"{entry.path}: {args.name} {args.value:g}"


def run_note(registry: Registry, args) -> Iterator[str]:
    entry = resolve(registry, args.lora)
    annotate(registry, entry.hash, args.notes)
    yield f"{entry.path}: noted"


def run_forget(registry: Registry, args) -> Iterator[str]:
    gone = forget_missing(registry)
    yield from (f"forgotten: {path}" for path in gone)
    yield f"{len(gone)} forgotten"


ACTIONS = {
    "scan": run_scan, "find": run_find, "show": run_show, "score": run_score, "note": run_note, "forget": run_forget,
}  # fmt: skip


def add_header(parser) -> None:
    parser.add_argument("file", type=Path, help="safetensors file")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=TEXT", help="entries to write; KEY= removes one")
    parser.add_argument(
        "--out", type=Path, help="file to write; without it the file itself is changed, whole or not at all"
    )
    parser.add_argument("--registry", type=Path, help="registry to bring up to date")
    parser.add_argument("--all", action="store_true", help="show every entry whole, however long")


def run_header(args) -> Iterator[str]:
    changes = dict(pair_of(word) for word in args.set)
    written = args.out or args.file
    if changes or args.out:
        differ = edit_header(args.file, changes, args.out)
        yield from (f"{key}: {short(old) or '-'} -> {short(new) or '-'}" for key, (old, new) in differ.items())
    if args.registry and (changes or args.out):
        with open_registry(args.registry) as registry:
            record(registry, written)
    hashes = hash_file(written)
    told = str if args.all else short
    yield from (f"  {key}: {told(value)}" for key, value in read_header(written).metadata.items())
    yield f"{written}: sha256 {hashes.file}, AutoV2 {hashes.short}, tensors {hashes.tensors}, legacy {hashes.legacy}"


def pair_of(word: str) -> tuple[str, str]:
    """Key and text of KEY=TEXT; raises AtelierError if it is none."""
    key, sign, text = word.partition("=")
    if not sign or not key.strip():
        raise AtelierError(f"{word!r} is no entry. Write KEY=TEXT, as in modelspec.title=Evening.")
    return key.strip(), text


COMMANDS = {
    "loras": ("Keep a table of LoRAs, and find them in it.", add_loras, run_loras),
    "header": (
        "Read and change what a LoRA file says of itself; its tensors stay as they are.",
        add_header,
        run_header,
    ),
}

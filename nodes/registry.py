"""The registry of a person's LoRAs: found by words, filled by every node that writes one; and what files say of themselves."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from comfy_api.latest import io, ui

from ..core.counting import counted
from ..core.errors import AtelierError
from ..core.files import digest_of, read_tensors
from ..core.lora.formats import read_lora
from ..core.lora.header import edit_header, hash_file, read_header, refuse_fixed
from ..core.lora.identity import identity
from ..core.lora.record import Base, Lora
from ..core.lora.registry import Entry, Parent, Registry, open_registry
from ..core.lora.scan import UNREADABLE, lora_files, record, scan
from ..core.lora.search import Sort, search
from . import host, types
from .wire import opened

log = logging.getLogger("flux_atelier")
CATEGORY = "Flux Atelier/LoRA"
ANY = "any"
REMOVE = "-"  # what a person writes to take an entry out
KEYS = {
    "trigger_words": "modelspec.trigger_phrase",
    "comment": "ss_training_comment",
    "title": "modelspec.title",
    "author": "modelspec.author",
    "tags": "modelspec.tags",
    "license": "modelspec.license",
    "description": "modelspec.description",
}
SHOWN = 200  # letters of a header's entry in the report


def registry_file() -> Path:
    """The registry's file: output/flux_atelier/loras.sqlite."""
    return host.output_folder("flux_atelier", "loras.sqlite")


def lora_folders() -> list[Path]:
    """The folders of LoRAs that ComfyUI knows, output/loras among them, as far as they are there."""
    by_place = {f.resolve(): f.absolute() for f in reversed(host.model_folders("loras"))}
    return [f for f in reversed(by_place.values()) if f.is_dir()]


def note_made(
    path: Path, lora: Lora, parents: Sequence[Lora | str] | Mapping[str, Lora] = (), scores: Mapping[str, float] = {}
) -> None:
    """Put a LoRA that a node has just written into the registry; call it after each file.

    What fails is told in the log and never raised: the person's file is written already.
    path     the file
    lora     what was written
    parents  the LoRAs it was made of, or their names in ComfyUI's list; a mapping gives LoRAs their names
    scores   figures by name
    """
    try:
        with open_registry(registry_file()) as registry:
            record(registry, path, lora, _parents(registry, parents), scores)
    except (AtelierError, *UNREADABLE) as error:
        log.warning("%s is written, but the registry does not have it: %s", path, error)


def _parents(registry: Registry, given: Sequence[Lora | str] | Mapping[str, Lora]) -> list[Parent]:
    """Parents by their identities, with the names of their files where the registry knows them."""
    pairs = given.items() if isinstance(given, Mapping) else [("", one) for one in given]
    found = []
    for name, one in pairs:
        if isinstance(one, str):
            found.append(Parent(identity(read_lora(host.lora_path(one))), Path(one).stem))
            continue
        hash = identity(one)
        sql = "SELECT path FROM loras WHERE hash = ? OR aliases LIKE ? ORDER BY missing, path LIMIT 1"
        rows = registry.rows(sql, [hash, f'%"{hash}"%'])
        found.append(Parent(hash, Path(rows[0]["path"]).stem if rows else name))
    return found


class FindLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FluxAtelierLoraRegistry",
            display_name="Find LoRA",
            category=CATEGORY,
            description="Search your LoRAs by words in names, triggers, tags, comments and hashes, and load one of them.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "query",
                    default="",
                    tooltip="Words, all of which have to occur, whole or in part; empty finds every LoRA.",
                ),
                io.Combo.Input("base", options=[ANY, *get_args(Base)], default=ANY, tooltip="Kind of model it is for."),
                io.Combo.Input(
                    "sort", options=list(get_args(Sort)), default="name", tooltip="Order; score puts the highest first."
                ),
                io.Int.Input("limit", default=20, min=1, max=1000, tooltip="How many LoRAs the table has at most."),
                io.Int.Input(
                    "index", default=0, min=0, max=999, tooltip="Which row of the table to load; 0 is the first."
                ),
                io.Boolean.Input(
                    "rescan",
                    default=True,
                    tooltip="Look for files that are new, changed or gone first; only those are read.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="table"),
                io.AnyType.Output(display_name="lora name"),
                types.LoraModel.Output(display_name="lora"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, query, base, sort, limit, rescan, **_):
        with open_registry(registry_file()) as registry:
            if rescan:  # what execute will find in the folders, and what only the registry knows
                files = [(str(f), s.st_size, s.st_mtime_ns) for f in _files() for s in [f.stat()]]
                noted = registry.rows("SELECT count(*), max(noted) FROM loras WHERE noted > 0")[0]
                return digest_of(files, *noted)
            found = _found(registry, query or "", base, sort, limit)
            return digest_of([(e.path, e.hash, e.modified, e.size, e.notes, e.scores) for e in found])

    @classmethod
    def execute(cls, query: str, base: str, sort: Sort, limit: int, index: int, rescan: bool) -> io.NodeOutput:
        with open_registry(registry_file()) as registry:
            told = [registry.told] if registry.told else []
            if rescan:
                told += rescanned(registry, cls.hidden.unique_id)
            found = _found(registry, query, base, sort, limit)
        if index >= len(found):
            raise AtelierError(
                f"{counted(len(found), 'LoRA matches', 'LoRAs match')} {query!r}, so there is no row {index}. "
                "Write other words or a lower index, or switch rescan on."
            )
        table = "\n".join([*map(row_of, range(len(found)), found), *told])
        if found[index].problem:
            raise AtelierError(found[index].problem)
        name = lora_name(Path(found[index].path))
        with torch.inference_mode(False):
            lora, _ = opened(*read_tensors(host.lora_path(name)), name)
        return io.NodeOutput(table, name, lora, ui=ui.PreviewText(table))


def _files() -> list[Path]:
    return [f for folder in lora_folders() for f in lora_files(folder) if f.is_file()]


def _found(registry: Registry, query: str, base: str, sort: Sort, limit: int) -> list[Entry]:
    return search(registry, query, "" if base == ANY else base, sort, limit)


def rescanned(registry: Registry, node_id: str | None) -> list[str]:
    """Scan ComfyUI's LoRA folders under the node's bar; gives what could not be read."""
    bar, told = None, []
    for step in scan(registry, lora_folders()):
        bar = bar or host.Progress(step.total, node_id)
        bar.at(step.done)
        if step.problem:
            told.append(step.problem)
    return told


def row_of(number: int, entry: Entry) -> str:
    """A row of the table."""
    if entry.problem:
        return f"{number}: {entry.name} | {entry.problem}"
    about = [entry.base, "/".join(entry.kinds), f"rank {entry.rank}", f"{entry.size / 2**20:.1f} MiB", entry.hash[:10]]
    about += [", ".join(entry.triggers)] if entry.triggers else []
    about += [f"{name} {value:g}" for name, value in entry.scores.items()]
    about += [entry.notes] if entry.notes else []
    return f"{number}: {entry.name} | " + " | ".join(about)


def lora_name(path: Path) -> str:
    """A LoRA's name in ComfyUI's list; raises AtelierError if the loaders would not find this file by it."""
    folder = next((f for f in lora_folders() if path.is_relative_to(f)), None)
    if folder is None:
        raise AtelierError(f"{path} lies outside ComfyUI's LoRA folders. Move it there, or choose another row.")
    name = str(path.relative_to(folder))
    first = host.lora_path(name)
    if not first.samefile(path):
        raise AtelierError(f"The name {name} means {first} to ComfyUI's loaders, not {path}. Rename one of the two.")
    return name


class EditLoraHeader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kept = "; empty keeps what is there, - removes it."
        return io.Schema(
            node_id="FluxAtelierEditLoraHeader",
            display_name="Edit LoRA Header",
            category=CATEGORY,
            description="Read and change what a LoRA file says of itself. Its tensors stay as they are, its hashes become fresh.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("lora_name", options=host.lora_names(), tooltip="The LoRA file."),
                io.String.Input("trigger_words", default="", tooltip="Words that call it up, with commas" + kept),
                io.String.Input("comment", default="", multiline=True, tooltip="The training comment" + kept),
                io.String.Input("title", default="", tooltip="Its title" + kept),
                io.String.Input("author", default="", tooltip="Who made it" + kept),
                io.String.Input("tags", default="", tooltip="What it is about, with commas" + kept),
                io.String.Input("license", default="", tooltip="Its license" + kept),
                io.String.Input("description", default="", multiline=True, tooltip="What it does" + kept),
                io.String.Input(
                    "more",
                    default="",
                    multiline=True,
                    tooltip="Any other entries, one key = text a line; key = - removes.",
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Name of a file in output/loras to write; empty changes the file itself, whole or not at all.",
                ),
            ],
            outputs=[io.AnyType.Output(display_name="lora name"), io.String.Output(display_name="report")],
        )

    @classmethod
    def validate_inputs(cls, lora_name=None, save_as=None, more=None):
        named = host.told(host.lora_path, lora_name)
        named = named if named is not True or not save_as else host.told(host.lora_file, save_as)
        return named if named is not True else host.told(lambda text: refuse_fixed(entries_of(text)), more)

    @classmethod
    def fingerprint_inputs(cls, lora_name, **_):
        facts = host.lora_path(lora_name).stat()
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, lora_name: str, save_as: str, more: str, **texts: str) -> io.NodeOutput:
        source = host.lora_path(lora_name)
        changes = {KEYS[k]: text.strip() for k, text in texts.items() if text.strip()} | entries_of(more)
        changes = {k: None if text == REMOVE else text for k, text in changes.items()}
        out = host.lora_file(save_as.strip()) if save_as.strip() else None
        lines = []
        if changes or out:
            differ = edit_header(source, changes, out)
            lines = [
                f"{key}: {shown(old) or 'nothing'} -> {shown(new) or 'nothing'}" for key, (old, new) in differ.items()
            ]
            note_edited(out or source)
        written, header = out or source, read_header(out or source)
        hashes = hash_file(written)
        lines += [f"{key} = {shown(text)}" for key, text in header.metadata.items()]
        lines += [f"SHA-256 {hashes.file}, AutoV2 {hashes.short}", str(written)]
        report = "\n".join(lines)
        return io.NodeOutput(host.lora_name_of(out) if out else lora_name, report, ui=ui.PreviewText(report))


def note_edited(path: Path) -> None:
    """Bring a file's row up to date; what fails is told in the log, as in note_made."""
    try:
        with open_registry(registry_file()) as registry:
            record(registry, path)
    except (AtelierError, *UNREADABLE) as error:
        log.warning("%s is written, but the registry does not have it: %s", path, error)


def entries_of(text: str) -> dict[str, str]:
    """Entries from lines of key = text; raises AtelierError for a line that is none."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, sign, value = line.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise AtelierError(f"The line {line!r} is no entry. Write key = text.")
        found[key.strip()] = value.strip()
    return found


def shown(text: str) -> str:
    """A text in one line that is not too long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


NODES = [FindLora, EditLoraHeader]

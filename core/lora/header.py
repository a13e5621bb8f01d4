"""What a safetensors file says of itself, read and changed while its tensors' bytes stay as they are.

The hashes are those that other programs compute. *File*: SHA-256 of all bytes; its first ten digits are the AutoV2 of
model sites. *Tensors*: SHA-256 of what comes after the header, which is `sshs_model_hash` in kohya's files, with 0x
before it `modelspec.hash_sha256` (Stability AI's ModelSpec 1.0), and in its first twelve digits AutoV3. *Legacy*: eight
digits of the SHA-256 of the 64 KiB at 1 MiB in the file as it would be with the ss_ entries alone, as
sd-webui-additional-networks and sd-scripts' `sshs_legacy_hash` have it.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AtelierError
from ..files import check_tensors, write_whole

MODEL_HASH, LEGACY_HASH, SPEC_HASH = "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"
# What follows from the file itself, or says how its tensors are to be read.
FIXED = (MODEL_HASH, LEGACY_HASH, SPEC_HASH, "format", "lora_adapter_metadata")
LARGEST = 100_000_000  # bytes of a header that safetensors still opens
METADATA = "__metadata__"
WINDOW = (0x100000, 0x10000)  # where the legacy hash looks, and how far
CHUNK = 1 << 20


@dataclass(frozen=True)
class Header:
    """A safetensors file's header: its metadata, each tensor's dtype, shape and data_offsets, where the data begins."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    start: int


@dataclass(frozen=True)
class Hashes:
    """A file's hashes in hex without 0x: of all bytes, of the tensors' bytes, and the old one of eight digits."""

    file: str
    tensors: str
    legacy: str

    @property
    def short(self) -> str:
        """AutoV2, by which model sites find a file."""
        return self.file[:10].upper()


def read_header(path: Path) -> Header:
    """Read a safetensors file's header; raises AtelierError if the file is missing, cut short or something else."""
    path = Path(path)
    check_tensors(path)
    with open(path, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(size))
    return Header(entries.pop(METADATA, None) or {}, entries, 8 + size)


def hash_file(path: Path) -> Hashes:
    """Compute a safetensors file's hashes, reading it once; raises AtelierError as read_header does."""
    header = read_header(path)
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as opened:
        whole.update(opened.read(header.start))
        while chunk := opened.read(CHUNK):
            whole.update(chunk)
            tensors.update(chunk)
    return Hashes(whole.hexdigest(), tensors.hexdigest(), _legacy_hash(path, header, header.metadata))


def fresh_hashes(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """The hashes that a header of a file's tensors has to name.

    metadata  what the header says besides; the ss_ entries count for the legacy hash
    """
    header = read_header(path)
    with open(path, "rb") as opened:
        opened.seek(header.start)
        tensors = hashlib.file_digest(opened, "sha256").hexdigest()
    return {MODEL_HASH: tensors, LEGACY_HASH: _legacy_hash(path, header, metadata), SPEC_HASH: f"0x{tensors}"}


def edit_header(source: Path, changes: Mapping[str, str | None], out: Path | None = None) -> dict[str, tuple[str, str]]:
    """Write a safetensors file with other metadata and fresh hashes; the tensors' bytes are copied as they are.

    source   the file
    changes  new text by key; None or an empty text removes the entry
    out      file to write; None changes the source itself, whole or not at all
    ->       what differs, hashes included: key to the old and the new text, "" where there is none; a source that
             needs no change is left alone
    Raises AtelierError for a key that follows from the file, a header that grows beyond what can be opened, or a place
    that cannot be written.
    """
    source = Path(source)
    header = read_header(source)
    refuse_fixed(changes)
    said = {k: v for k, v in {**header.metadata, **changes}.items() if v}
    said |= fresh_hashes(source, said)
    names = [*header.metadata, *(k for k in said if k not in header.metadata)]
    pairs = {k: (header.metadata.get(k, ""), said.get(k, "")) for k in names}
    differ = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
    target = source.resolve() if out is None else Path(out)  # a link stays one
    if differ or target.resolve() != source.resolve():
        packed = _packed(said, header.tensors)
        if len(packed) - 8 > LARGEST:
            raise AtelierError(
                f"The header of {source.name} would have {len(packed):,} bytes, and {LARGEST:,} is the most. Write less."
            )
        try:
            write_whole(target, lambda part: _copy(source, header.start, packed, part))
        except OSError as error:
            raise AtelierError(f"{target} could not be written ({error}). Give another name or folder.") from None
    return differ


def refuse_fixed(changes: Mapping[str, str | None]) -> None:
    """Raise AtelierError for a key that nobody may write, because it follows from the file."""
    for key in changes:
        if not key.strip():
            raise AtelierError("An entry of the header has no name. Write name=text.")
        if key in FIXED or key == METADATA:
            raise AtelierError(f"{key} follows from the file itself. Leave it out; hashes are computed afresh.")


def _copy(source: Path, start: int, packed: bytes, target: Path) -> None:
    with open(source, "rb") as before, open(target, "wb") as after:
        after.write(packed)
        before.seek(start)
        shutil.copyfileobj(before, after, CHUNK)


def _packed(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> bytes:
    """Length and header as safetensors itself writes them: compact, UTF-8, filled up to eights with spaces."""
    text = json.dumps({METADATA: dict(metadata), **tensors}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _legacy_hash(path: Path, header: Header, metadata: Mapping[str, str]) -> str:
    """The legacy hash of a file's tensors under a header with the ss_ entries of `metadata` alone."""
    head = _packed({k: v for k, v in metadata.items() if k.startswith("ss_")}, header.tensors)
    begin, length = WINDOW
    seen = head[begin : begin + length]
    with open(path, "rb") as opened:
        opened.seek(header.start + max(0, begin - len(head)))
        seen += opened.read(length - len(seen))
    return hashlib.sha256(seen).hexdigest()[:8]

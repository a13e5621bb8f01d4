"""Files that nodes have written: what a person has removed since is made again, though ComfyUI keeps the node's outputs."""

from pathlib import Path

_written: set[Path] = set()
_removed = 0


def remember(path: Path) -> None:
    """Look after a file from now on."""
    _written.add(Path(path))


def removals() -> int:
    """How often a remembered file was found to be gone: what fingerprint_inputs returns, so that its node runs again."""
    global _removed
    gone = {path for path in _written if not path.is_file()}
    _written.difference_update(gone)
    _removed += bool(gone)
    return _removed

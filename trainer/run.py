"""A run is a folder: config.toml, metrics.jsonl, samples/, checkpoints/ and the LoRA.

What matters is in files, so a run outlives ComfyUI's history, and the same folder goes on where it stopped.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import AtelierError
from ..core.files import append_line, read_tensors, write_json, write_text
from ..core.options import parse, read_toml, to_toml
from .config import TrainOptions
from .state import mend, state_folders

# What a later session may change without training something else than the first one did.
MAY_CHANGE = frozenset(
    [
        "steps", "save_every", "keep_states", "validate_every", "sample_every", "sample_prompt",
        "gradient_checkpointing", "offload_activations", "result", "tracker", "comment", "skip_limit", "rollbacks",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder; small enough to travel on a wire."""

    folder: Path
    name: str

    @property
    def config_file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def notes_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.txt"

    @property
    def best_file(self) -> Path:
        return self.checkpoints / "best.safetensors"

    def add_note(self, step: int, text: str) -> None:
        """Write down something that happened at a step."""
        append_line(self.notes_file, json.dumps({"step": step, "note": text}))

    def notes(self) -> list[dict]:
        """What happened, in order: `step` and `note`."""
        return _lines(self.notes_file)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    def sample_file(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}.png"

    @property
    def lora_file(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    def facts(self) -> dict[str, str]:
        """Fingerprints of the dataset, the model and the LoRAs that the run was opened with."""
        file = self.folder / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def best(self) -> tuple[float, int] | None:
        """The lowest validation loss and its step, as the file of those weights says."""
        said = read_tensors(self.best_file)[1] if self.best_file.is_file() else {}
        return (float(said["loss"]), int(said["step"])) if "loss" in said else None

    def metrics(self) -> list[dict]:
        """The run's metrics, one record a step; a last line cut short is left out."""
        return _lines(self.metrics_file)


def _lines(file: Path) -> list[dict]:
    """Records of a file of JSON lines; a line cut short is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def open_run(folder: Path, name: str, options: TrainOptions, dataset: str, model: str, begin: str = "") -> Run:
    """Make a run's folder, or take up an existing one.

    dataset, model, begin  fingerprints of what it trains on and of the LoRAs it starts with
    Raises AtelierError if the folder holds a run with other settings, pictures or another model.
    """
    run = Run(Path(folder), name)
    mend(run.checkpoints)
    for left in (*run.folder.glob(".*.part"), *run.checkpoints.glob(".*.part"), *run.samples.glob(".*.part")):
        left.unlink(missing_ok=True)  # of a killed process
    facts = {"dataset": dataset, "model": model, "begin": begin}
    if run.config_file.is_file() and state_folders(run.checkpoints):
        _refuse_changes(run, options, facts, run.facts() or facts)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, to_toml(options))
    write_json(run.folder / "run.json", facts)
    return run


def _refuse_changes(run: Run, options: TrainOptions, facts: dict, before: dict) -> None:
    then = parse(TrainOptions, read_toml(run.config_file), str(run.config_file))
    changed = [k for k in _different(then.model_dump(), options.model_dump()) if k not in MAY_CHANGE]
    if changed:
        old, new = _at(then.model_dump(), changed[0]), _at(options.model_dump(), changed[0])
        raise AtelierError(
            f"The run folder {run.folder} was started with {changed[0]} = {old!r}, now it is {new!r}. "
            "Set it back to go on, or choose another name to start anew."
        )
    labels = {
        "dataset": "other pictures or captions",
        "model": "another base model",
        "begin": "another LoRA to go on from or to lie under it",
    }
    for what, label in labels.items():
        if before.get(what, "") != facts[what]:
            raise AtelierError(
                f"The run folder {run.folder} was started with {label}. "
                "Bring the old one back to go on, or choose another name to start anew."
            )


def _different(a: dict, b: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in a.items():
        if isinstance(value, dict):
            found += _different(value, b[key], f"{prefix}{key}.")
        elif value != b[key]:
            found.append(prefix + key)
    return found


def _at(values: dict, key: str):
    for part in key.split("."):
        values = values[part]
    return values


class Metrics:
    """Appends one JSON line a step; lines beyond the step that is resumed from are cut off first."""

    def __init__(self, run: Run, from_step: int):
        kept = [r for r in run.metrics() if r["step"] <= from_step]
        self.run = run
        self._write(kept)

    def add(self, record: dict) -> None:
        append_line(self.run.metrics_file, json.dumps(record))

    def amend(self, more: dict) -> None:
        """Add to the last record."""
        *before, last = self.run.metrics()
        self._write([*before, last | more])

    def _write(self, records: list[dict]) -> None:
        write_text(self.run.metrics_file, "".join(json.dumps(r) + "\n" for r in records))

"""A run is a folder: config.toml, metrics.jsonl, samples/, checkpoints/ and the LoRA.

What matters is in files, so a run outlives ComfyUI's history, and the same folder goes on where it stopped.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import AtelierError
from ..core.files import write_json, write_text
from ..core.options import parse, read_toml, to_toml
from .config import TrainOptions
from .state import state_folders

# What a later session may change without training something else than the first one did.
MAY_CHANGE = frozenset(
    ["steps", "save_every", "keep_states", "validate_every", "sample_every", "sample_prompt", "gradient_checkpointing"]
)


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

    def metrics(self) -> list[dict]:
        """The run's metrics, one record a step; a last line cut short is left out."""
        if not self.metrics_file.is_file():
            return []
        records = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records


def open_run(folder: Path, name: str, options: TrainOptions, dataset: str, model: str) -> Run:
    """Make a run's folder, or take up an existing one.

    dataset, model  fingerprints of what it trains on
    Raises AtelierError if the folder holds a run with other settings, pictures or another model.
    """
    run = Run(Path(folder), name)
    facts = {"dataset": dataset, "model": model}
    facts_file = run.folder / "run.json"
    if run.config_file.is_file() and state_folders(run.checkpoints):
        _refuse_changes(run, options, facts, json.loads(facts_file.read_text()) if facts_file.is_file() else facts)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, to_toml(options))
    write_json(facts_file, facts)
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
    for what, label in (("dataset", "pictures or captions"), ("model", "base model")):
        if before.get(what) != facts[what]:
            raise AtelierError(
                f"The run folder {run.folder} was started with another {label}. "
                f"Bring the old {what} back to go on, or choose another name to start anew."
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
        write_text(run.metrics_file, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = open(run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115 - open for the run's length

    def add(self, record: dict) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

"""Several processes on one run: the same curve as one, weights dealt out or not; a lost process loses no state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import options, session_in
from two_processes import CHOSEN

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors
from flux_atelier.trainer import adapter
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.run import Run
from flux_atelier.trainer.state import newest_state
from flux_atelier.trainer.world import World

HERE = Path(__file__).parent
CODE = (
    f"import sys, runpy; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import conftest; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


def two(folder: Path, how: str = "whole", die_at: int = 0) -> int:
    """Run two processes as torchrun does; gives its exit status."""
    launcher = folder / "launch.py"
    launcher.write_text(CODE.replace("sys.argv[1]", repr(str(HERE / "two_processes.py"))))
    environment = os.environ | {"COMFYUI_PATH": os.devnull, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(launcher)]
    done = subprocess.run(
        [*command, str(folder), how, str(die_at)], env=environment, capture_output=True, text=True, timeout=240
    )
    if done.returncode and not die_at:
        pytest.fail(done.stderr[-3000:])
    return done.returncode


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    torch.set_num_threads(1)
    session = session_in(tmp_path_factory.mktemp("one"), options(**CHOSEN))
    list(train(session))
    return session


@pytest.mark.parametrize("how", ["whole", "shard"])
def test_two_processes_give_the_curve_of_one(one, tmp_path, how):
    two(tmp_path, how)
    records = Run(tmp_path / "run", "run").metrics()
    assert [r["step"] for r in records] == list(range(1, 7))
    for ours, theirs in zip(records, one.run.metrics(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    first, second = (read_tensors(tmp_path / f"final{rank}.safetensors")[0] for rank in (0, 1))
    alone = adapter.state(one.tree)
    assert all(torch.equal(first[k], second[k]) for k in first)
    drift = sum((first[k] - alone[k]).square().sum() for k in alone) / sum(v.square().sum() for v in alone.values())
    assert drift.sqrt() < 1e-4


def test_a_lost_process_ends_the_run_with_its_last_state_whole(tmp_path):
    assert two(tmp_path, die_at=5) != 0
    saved = newest_state(tmp_path / "run" / "checkpoints")
    assert saved.step in (4, 5)  # the first process may get to save the step that both had finished
    # A save that was under way is in a hidden folder, which the next run clears away.
    halves = [p.relative_to(tmp_path).parts for p in (tmp_path / "run").rglob("*.part")]
    assert all(any(part.startswith(".step-") for part in parts) for parts in halves)


def test_what_cannot_be_dealt_out_evenly_is_told():
    with pytest.raises(AtelierError, match="accumulation is 3, which 2 processes cannot share evenly"):
        World(0, 2).share(3)
    assert list(World(1, 2).share(4)) == [1, 3]

"""Stopped at twenty random moments, a training loses the step under way at most and ends in the same bits."""

import errno
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import MOMENTS, RECIPES, Children, Ending, Moment, Stop, Trap, go, lay, room, run_into, session_of

from flux_atelier.core import files
from flux_atelier.core.errors import AtelierError
from flux_atelier.core.files import read_tensors
from flux_atelier.core.lora.formats import read_lora
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.run import Run
from flux_atelier.trainer.state import newest_state, read_state, state_folders


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("kills")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(base):
    """A recipe's run that was never stopped, with a count of the times it came by each place."""
    known = {}

    def of(recipe: str) -> Ending:
        if recipe not in known:
            trap, session = Trap(), session_of(base / recipe, recipe)
            with pytest.MonkeyPatch.context() as patch:
                lay(trap, session, patch.setattr)
                go(session, trap)
            known[recipe] = Ending(base / recipe, trap.counts)
        return known[recipe]

    return of


@pytest.fixture(scope="module")
def children():
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    made = Children()
    yield made
    made.parent.stdin.close()
    made.parent.wait()


@pytest.fixture(scope="module")
def stopped(base, whole, request):
    """A run that was stopped at a moment and taken up again until its end."""
    known = {}

    def at(moment: Moment) -> Ending:
        if str(moment) not in known:
            number = moment.number or 1 + int(moment.share * whole(moment.recipe).counts[moment.place])
            known[str(moment)] = stop(replace(moment, number=number))
        return known[str(moment)]

    def stop(moment: Moment) -> Ending:
        error = None
        with room(base / str(moment).replace(" ", "-"), moment) as folder:
            if moment.how == "kill":
                assert request.getfixturevalue("children").run(moment, folder) == -signal.SIGKILL
            else:
                try:
                    with pytest.MonkeyPatch.context() as patch:
                        run_into(moment, folder, patch.setattr)
                except (Stop, AtelierError, torch.OutOfMemoryError) as raised:
                    error = raised
            (folder / "filler").unlink(missing_ok=True)
            struck = [int(word) for word in (folder / "struck").read_text().split()]
            session = session_of(folder, moment.recipe)
            ending = Ending(folder, Counter(), *struck, session.step, error)
            go(session, Trap())
        kept = folder.with_suffix(".kept")
        return replace(ending, folder=kept) if kept.is_dir() else ending

    return at


def moments(*more: Moment):
    """All moments as cases."""
    return pytest.mark.parametrize("moment", [*MOMENTS, *more], ids=str)


CTRL_C = Moment("cancel", "update", "third", 0.55)
NO_ROOM = Moment("oom", "update", "third", 0.55)
NO_ROOM_AT_FIRST = Moment("oom", "update", "every", number=1)
MIDST = Moment("cancel", "yield", "back", number=5)


@moments()
def test_no_more_is_lost_than_the_step_under_way(stopped, moment):
    ending = stopped(moment)
    keeps = moment.how in ("cancel", "oom")
    assert ending.resumed_at >= (ending.stopped_at if keeps else ending.newest)
    under_way = RECIPES[moment.recipe]["save_every"] + (moment.recipe == "skip")  # a skipped step changes no weight
    assert ending.stopped_at - ending.resumed_at <= under_way


@moments(CTRL_C, NO_ROOM, NO_ROOM_AT_FIRST, MIDST)
def test_it_ends_in_the_same_bits(stopped, whole, moment):
    a, b = newest_state(stopped(moment).run.checkpoints), newest_state(whole(moment.recipe).run.checkpoints)
    assert a.step == b.step
    for name in ("adapter", "optimizer", "average"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), name


@moments()
def test_it_tells_the_same(stopped, whole, moment):
    def told(ending: Ending):
        records = [{k: v for k, v in r.items() if k != "seconds"} for r in ending.run.metrics()]
        return records, newest_state(ending.run.checkpoints).facts

    assert told(stopped(moment)) == told(whole(moment.recipe))
    for file in ("best_file", "lora_file"):
        ours, theirs = (read_tensors(getattr(e.run, file))[0] for e in (stopped(moment), whole(moment.recipe)))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), file


@moments()
def test_nothing_half_written_stays(stopped, moment):
    ending = stopped(moment)
    assert not list(ending.folder.rglob(".*"))
    assert max(read_state(p).step for p in state_folders(ending.run.checkpoints)) == 8
    assert read_lora(ending.run.lora_file).rank == 4


@pytest.mark.parametrize("moment", [m for m in MOMENTS if m.how in ("full", "fill")], ids=str)
def test_a_full_disk_is_told_in_words(stopped, moment):
    assert isinstance(stopped(moment).error, AtelierError)
    assert "the disk is full" in str(stopped(moment).error)


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_memory_that_runs_out_in_the_middle_is_stepped_down_as_at_the_first_step(base, tmp_path, place, monkeypatch):
    """The largest bucket may come late."""
    run_into(Moment("oom", place, "third", number=25), tmp_path, monkeypatch.setattr)
    assert "out of memory, so from now on" in Run(tmp_path / "run", "run").notes()[0]["note"]


def test_memory_that_runs_out_for_the_optimizers_state_is_told(base, tmp_path, monkeypatch):
    session = session_of(tmp_path, "every")

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with monkeypatch.context() as patch:
        session.optimizer.register_step_pre_hook(lambda *_: patch.setattr(torch, "zeros_like", out_of_memory))
        with pytest.raises(AtelierError, match="too little memory"):
            list(train(session))


def test_a_kill_while_a_state_takes_anothers_place_loses_neither(base, tmp_path, children):
    assert children.run(Moment("kill", "aside", "back", number=1), tmp_path) == -signal.SIGKILL
    assert session_of(tmp_path, "back").step == 4


def test_a_state_that_cannot_take_anothers_place_leaves_it_there(base, tmp_path, monkeypatch):
    """On Windows a folder that another program looks into cannot be renamed."""
    session, rename = session_of(tmp_path, "back"), Path.rename

    def refused(path, target):
        if session.guard.rolled_back and not str(target).endswith(".old") and not str(path).endswith(".old"):
            raise PermissionError(errno.EACCES, "Access is denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        list(train(session))
    assert newest_state(session.run.checkpoints) is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_full_for_the_metrics_is_told_and_the_state_is_saved(base, tmp_path, monkeypatch):
    real = open

    def opened(path, mode="r", **how):
        return real("/dev/full" if Path(path).name == "metrics.jsonl" and "a" in mode else path, mode, **how)

    monkeypatch.setattr("builtins.open", opened)
    session = session_of(tmp_path, "third")
    with pytest.raises(AtelierError, match="the disk is full"):
        list(train(session))
    assert newest_state(session.run.checkpoints).step == 1


def test_a_disk_that_is_too_full_for_a_folder_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(AtelierError, match="the disk is full"):
        files.write_text(tmp_path / "new" / "a.txt", "a")


def test_a_note_cut_short_swallows_no_other(tmp_path):
    run = Run(tmp_path, "run")
    run.notes_file.write_text('{"step": 1, "no')
    run.add_note(2, "skipped")
    assert run.notes() == [{"step": 2, "note": "skipped"}]


def test_the_best_weights_are_of_the_step_that_the_state_says(base, tmp_path, children):
    assert children.run(Moment("kill", "metrics", "third", number=4), tmp_path) == -signal.SIGKILL
    session = session_of(tmp_path, "third")
    assert session.step == 3
    assert read_tensors(session.run.best_file)[1]["step"] == str(session.best[1])

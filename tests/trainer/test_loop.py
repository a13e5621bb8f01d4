"""The loop: resume equals no resume, cancel keeps, damage is survived, wrong input is told."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import tiny_tree
from training import options, session_in

from flux_atelier.core.errors import AtelierError
from flux_atelier.core.lora.formats import read_lora, to_layout, write_lora
from flux_atelier.trainer import adapter, batches
from flux_atelier.trainer.cache import Sample
from flux_atelier.trainer.export import to_lora
from flux_atelier.trainer.loop import train
from flux_atelier.trainer.state import newest_state, state_folders

HERE = Path(__file__).parent


def final_bytes(session) -> list[bytes]:
    state = {**adapter.state(session.tree)}
    return [state[k].numpy().tobytes() for k in sorted(state)]


def losses(session) -> list[float]:
    return [r["loss"] for r in session.run.metrics()]


@pytest.fixture
def whole(tmp_path):
    torch.set_num_threads(1)
    session = session_in(tmp_path / "whole", options())
    list(train(session))
    return session


def test_cancel_and_resume_ends_in_the_same_bytes(tmp_path, whole):
    for stop in (1, 5):
        folder = tmp_path / f"parts{stop}"
        with closing(train(session_in(folder, options()))) as steps:
            for step in steps:
                if step.step == stop:
                    break
        resumed = session_in(folder, options())
        assert resumed.step == stop
        list(train(resumed))
        assert final_bytes(resumed) == final_bytes(whole)
        assert losses(resumed) == losses(whole)


def test_killed_at_a_step_and_resumed_ends_in_the_same_bytes(tmp_path, whole):
    folder = tmp_path / "killed"
    code = (
        f"import sys, runpy; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import conftest; "
        f"sys.argv = ['training.py', {str(folder)!r}]; runpy.run_path({str(HERE / 'training.py')!r}, run_name='__main__')"
    )
    environment = os.environ | {"COMFYUI_PATH": os.devnull, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    for line in child.stdout:
        if line.strip() == b"5":
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    resumed = session_in(folder, options())
    assert resumed.step == 3  # the state saved last
    list(train(resumed))
    assert final_bytes(resumed) == final_bytes(whole)
    assert losses(resumed) == losses(whole)


def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path, whole):
    newest = state_folders(whole.run.checkpoints)[0]
    file = newest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert newest_state(whole.run.checkpoints).step == 6
    resumed = session_in(whole.run.folder.parent, options())
    list(train(resumed))
    assert final_bytes(resumed) == final_bytes(whole)


def test_states_are_kept_to_the_number_asked_for(whole):
    assert [p.name for p in state_folders(whole.run.checkpoints)] == ["step-0000008", "step-0000006"]
    assert not list(whole.run.checkpoints.glob(".*"))


def test_accumulation_equals_a_larger_batch(tmp_path):
    torch.set_num_threads(1)
    session = session_in(tmp_path, options(batch_size=2, accumulation=2, steps=1, max_grad_norm=0))
    plan = batches.Plan.of(session.samples, 2, 0)
    assert len(plan.batch(0)) == 2
    (step,) = train(session)
    assert step.loss > 0


def test_a_non_finite_loss_stops_with_the_state_before_it(tmp_path):
    session = session_in(tmp_path, options(skip_limit=0, rollbacks=0))
    with pytest.raises(AtelierError, match=r"loss is nan at step 3.*learning rate"):
        for step in train(session):
            if step.step == 2:
                with torch.no_grad():
                    before = [p.clone() for p in session.parameters]
                for key, (first, *rest) in session.cache._held.items():
                    session.cache._held[key] = (first * float("nan"), *rest)
    assert newest_state(session.run.checkpoints).step == 2
    assert all(torch.equal(a, b) for a, b in zip(before, session.parameters, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 5e-4}, "learning_rate = 0.001, now it is 0.0005"),
        ({"rank": 8}, "adapter.rank = 4, now it is 8"),
    ],
)
def test_other_settings_in_a_started_run_are_refused(whole, change, words):
    with pytest.raises(AtelierError, match=words):
        session_in(whole.run.folder.parent, options(**change))


def test_more_steps_go_on(whole):
    longer = session_in(whole.run.folder.parent, options(steps=10))
    assert [s.step for s in train(longer)] == [9, 10]


def test_validation_repeats_and_draws_from_no_other_random_state(tmp_path):
    session = session_in(tmp_path, options())
    torch.manual_seed(4)
    first = session.validation.loss(session)
    after = torch.rand(1)
    assert session.validation.loss(session) == first
    torch.manual_seed(4)
    assert torch.equal(torch.rand(1), after)


def test_training_learns_one_sample(tmp_path):
    session = session_in(tmp_path, options(steps=60, learning_rate=5e-3, schedule="constant", validate_every=60))
    first, _ = session.validation.loss(session)
    last = [s.validation for s in train(session) if s.validation is not None][-1]
    assert last < 0.9 * first


def test_every_epoch_shows_every_sample_and_mixes_no_sizes():
    samples = [Sample(str(i), "", 4, 4 + 2 * (i % 3), "", ()) for i in range(17)]
    plan = batches.Plan.of(samples, 4, seed=1)
    for epoch in range(3):
        dealt = [plan.batch(epoch * plan.batches_per_epoch + i) for i in range(plan.batches_per_epoch)]
        assert {i for b in dealt for i in b} == set(range(17))
        assert all(len(b) == 4 for b in dealt)
        assert all(len({samples[i].width for i in b}) == 1 for b in dealt)
    assert plan.batch(0) != plan.batch(plan.batches_per_epoch)


def test_written_lora_reads_back_with_its_provenance(tmp_path, whole):
    before = to_lora(whole)
    back = read_lora(write_lora(tmp_path / "a.safetensors", before, dtype=torch.float32))
    a, b = to_layout(back, "kohya", torch.float32), to_layout(before, "kohya", torch.float32)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert back.metadata["ss_network_dim"] == "4"
    assert json.loads(back.metadata["flux_atelier.config"])["adapter"]["rank"] == 4


def test_metrics_have_a_line_a_step(whole):
    records = whole.run.metrics()
    assert [r["step"] for r in records] == list(range(1, 9))
    assert [r["step"] for r in records if "validation" in r] == [4, 8]


def test_an_unknown_option_names_the_nearest(tmp_path):
    with pytest.raises(AtelierError, match=r"no option called .*learning_rat.* Did you mean learning_rate\?"):
        options(learning_rat=1.0)


def test_the_model_is_free_of_the_lora_afterwards(tmp_path):
    tree = tiny_tree()
    names = list(tree.state_dict())
    list(train(session_in(tmp_path, options(steps=2), tree)))
    assert list(tree.state_dict()) == names


def test_a_non_finite_gradient_stops_before_it_reaches_the_lora(tmp_path):
    session = session_in(tmp_path, options(skip_limit=0, rollbacks=0))
    with pytest.raises(AtelierError, match=r"gradient.s norm is (inf|nan) at step 3"):
        for step in train(session):
            if step.step == 2:
                before = [p.detach().clone() for p in session.parameters]
                session.parameters[0].register_hook(lambda grad: grad * float("inf") + float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(before, session.parameters, strict=True))
    assert newest_state(session.run.checkpoints).step == 2


def test_a_run_that_failed_before_its_first_step_may_change_its_settings(tmp_path):
    session = session_in(tmp_path, options())

    def stop():
        raise MemoryError

    session.check = stop
    with pytest.raises(MemoryError):
        list(train(session))
    assert not state_folders(session.run.checkpoints)
    assert session_in(tmp_path, options(rank=2)).step == 0


def test_a_fresh_state_is_kept_beside_damaged_later_ones(tmp_path, whole):
    for folder in state_folders(whole.run.checkpoints):
        (folder / "adapter.safetensors").write_bytes(b"")
    again = session_in(whole.run.folder.parent, options(keep_states=1))
    assert again.step == 0
    with closing(train(again)) as steps:
        next(steps)
    assert newest_state(again.run.checkpoints).step == 1


def test_cancel_is_noticed_inside_validation(tmp_path):
    session = session_in(tmp_path, options(validate_every=1))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for _ in train(session):
            session.check = stop
    assert newest_state(session.run.checkpoints).step == 1


def test_a_run_of_the_first_version_is_not_started_from_zero(whole):
    for folder in state_folders(whole.run.checkpoints):
        (folder / "adapter.safetensors").rename(folder / "lora.safetensors")
    with pytest.raises(AtelierError, match=r"started with version 0\.1"):
        session_in(whole.run.folder.parent, options())

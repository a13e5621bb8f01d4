"""Files appear whole, and with the rights that a person's umask gives: other programs of the house read them too."""

import os
import stat

import pytest
import torch

from flux_atelier.core import files
from flux_atelier.core.tensor_stream import Planned, writing


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def streamed(path):
    with writing(path, {"a": Planned("F32", (1,))}, {}) as writer:
        writer.put("a", torch.ones(1))


WRITERS = {
    "tensors": lambda path: files.write_tensors(path, {"a": torch.ones(2)}),
    "json": lambda path: files.write_json(path, {"a": 1}),
    "text": lambda path: files.write_text(path, "words"),
    "a stream": streamed,
}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no umask")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_has_the_rights_that_the_umask_gives(tmp_path, umask, kind):
    path = tmp_path / "it"
    for _ in range(2):  # a fresh file, and one in the place of another
        WRITERS[kind](path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["it"]

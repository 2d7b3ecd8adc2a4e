import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from ekg.errors import EkgError
from ekg.process import memory
from ekg.run import preflight
from ekg.run.job import out_of_memory


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout.split()


def test_the_peak_memory_is_of_this_process_and_not_of_its_parent():
    code = """import numpy as np
from ekg.process import memory
before = memory.peak_memory_mib()
block = np.ones(2**25)
del block
print(before, memory.peak_memory_mib() - before)"""
    large = np.ones(2**27)
    before, growth = map(float, run(code))
    assert 50 < before < large.nbytes / 2**20 < memory.peak_memory_mib() and 240 < growth < 300


@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux' record")
def test_a_peak_counts_its_own_block_only():
    code = """import numpy as np
from ekg.process.memory import Peak, resident_mib
before = resident_mib()
np.ones(2**26)
with Peak() as small:
    np.ones(2**24)
with Peak() as smaller:
    pass
print(small.host_mib - before, smaller.host_mib - before, small.gpu_mib)"""
    small, smaller, gpu = map(float, run(code))
    assert 110 < small < 160 and smaller < 30 and gpu == 0.0


@pytest.mark.parametrize(
    "groups, limits, expected",
    [
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {"memory.max": "1073741824\n"}, 1024),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "536870912\n",
                "job/step/memory.max": "max\n",
                "memory.max": "1073741824\n",
            },
            512,
        ),
        (
            "3:cpu:/\n4:memory,pids:/box\n0::/\n",
            {"memory/box/memory.limit_in_bytes": "268435456\n"},
            256,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/gone\n", {}, None),
    ],
)
def test_available_memory_respects_control_groups(groups, limits, expected, tmp_path, monkeypatch):
    (tmp_path / "own").write_text(groups)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    with open("/proc/meminfo", encoding="utf-8") as file:
        total = int(file.readline().split()[1]) / 1024
    assert memory.machine_memory_mib() == pytest.approx(expected or total, rel=0.01)


def test_a_phase_that_needs_too_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "machine_memory_mib", lambda: 100.0)
    preflight.check_memory({"search": 99.0, "report": 20.0})
    with pytest.raises(
        EkgError,
        match=r"^phase fine-tune: needs about 101 MiB of memory and 100 MiB are there; lower "
        r"`batch_size` or raise `accum`\.$",
    ):
        preflight.check_memory({"search": 99.0, "fine-tune": 101.0})


@pytest.mark.parametrize(
    "error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")]
)
def test_out_of_memory_names_the_phase_and_the_remedy(error):
    with (
        pytest.raises(EkgError, match="^phase report: out of memory; lower `val_batch_size`.$"),
        out_of_memory("report"),
    ):
        raise error

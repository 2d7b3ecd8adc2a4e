import subprocess
import sys

import numpy as np

from ekg import progress


def test_the_peak_memory_is_that_of_this_process_and_not_of_who_started_it():
    code = """import numpy as np
from ekg import progress
before = progress.peak_memory_mib()
block = np.ones(2**25)
del block
print(before, progress.peak_memory_mib() - before)"""
    large = np.ones(2**27)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout  # noqa: S603
    before, growth = map(float, output.split())
    assert 50 < before < large.nbytes / 2**20 < progress.peak_memory_mib() and 240 < growth < 300

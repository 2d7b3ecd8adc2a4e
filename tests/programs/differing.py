"""A small job of two workers of which the second has other data and another NumPy, or fails by
itself.

python -m tests.programs.differing HOW -- ARGUMENTS OF train_cifar.py
"""

import json
import os
import sys

import numpy as np

import train_cifar
import utils  # before TensorFlow: it sets TensorFlow's environment
from ekg.errors import EkgError
from ekg.run import arguments, phases
from tests.helpers import small_jobs
from tests.helpers.models import make_data
from tests.programs import stress_resume


def make_other_data():
    """The same labels, and other images."""
    return make_data(num_train=840, num_test=40, seed=1)


def differ(how):
    """Makes this process differ from the others."""
    if how == "environment":
        small_jobs.make_large_data = make_other_data
        arguments.VERSIONS["numpy"] = f"{np.__version__}.other"
    elif how == "failure":

        def fail(*_):
            raise EkgError("its own disk is full.")

        phases.search = fail
    else:
        raise ValueError(f"no such way: {how}.")


if __name__ == "__main__":
    if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
        differ(sys.argv[1])
    utils.run_script(stress_resume.run_job, lambda: train_cifar.parse_args(sys.argv[3:]))

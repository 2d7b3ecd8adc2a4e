"""Runs a small job whose disk cannot be written any more from a phase on.

    python -m tests.programs.full_disk HOW PHASE -- ARGUMENTS OF train_cifar.py

HOW is fill (the file system that the run folder lies on gets full) or limit (no file may grow any
more: other errors, and for where there is no small file system to fill).
"""

import contextlib
import resource
import sys

import utils  # before TensorFlow: it sets TensorFlow's environment
import train_cifar
from ekg.run.job import Job
from tests.programs import stress_resume

FILLER = "filler"


def fill(folder):
    """Leaves no byte free on the file system of a folder."""
    with contextlib.suppress(OSError), open(folder / FILLER, "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))
    with contextlib.suppress(OSError), open(folder / FILLER, "ab", buffering=0) as file:
        while True:
            file.write(b"x")


def limit(_folder):
    """Lets no file of this process grow."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


OBSTACLES = {"fill": fill, "limit": limit}


def main(how, obstructed, argv):
    """Runs the job of stress_resume in this process."""
    timed = Job.timed

    @contextlib.contextmanager
    def obstructing(self, phase):
        with timed(self, phase):
            if phase == obstructed:
                OBSTACLES[how](self.folder.path.parent)
            yield

    Job.timed = obstructing
    utils.run_script(stress_resume.run_job, lambda: train_cifar.parse_args(argv))


if __name__ == "__main__":
    main(*sys.argv[1:3], sys.argv[4:])

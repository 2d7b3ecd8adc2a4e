"""Runs of train_cifar.py: each is a process of its own, which can be stopped and goes on, and
leaves a folder.
"""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

from ekg.process import stopping
from ekg.report.page import write_report
from ekg.run.folder import REPORT_PAGE, REPORT_PICTURE, RunFolder

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).parents[1] / "train_cifar.py"
POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class PruningRuns:
    """Runs of train_cifar.py that prune one trained network at one rate, side by side in a folder.

    Attributes:
        path: pathlib.Path of the folder that holds their run folders.
        arch: name of the network.
        dataset: name of the data set.
        data_path: where its files lie, or None.
        trained_param: parameter file of the trained network.
        target_rate: share of the FLOPs to keep.
        more_flags: tuple of further flags of every run; they come last.
    """

    path: Path
    arch: str
    dataset: str
    data_path: str | None
    trained_param: Path
    target_rate: float
    more_flags: tuple = ()

    def __str__(self):
        return f"{self.arch} on {self.dataset} at {self.target_rate:.0%} of the FLOPs"

    def folder(self, name):
        """Returns the RunFolder of a run."""
        return RunFolder(self.path / name)

    def finish(self, name, *flags):
        """Returns the page.FinishedRun of this name; a run that is not finished begins, or goes on
        where it stopped.

        Args:
            name: of its folder.
            flags: of this run alone.

        Raises:
            Stopped: a signal asked this process to end; the run has ended with a checkpoint.
            SystemExit: the run failed, with its exit code.
        """
        logger.info("run %s", name)
        stopping.check()
        data_flags = ("--data_path", self.data_path) if self.data_path else ()
        code = run_process(
            [
                sys.executable,
                str(SCRIPT),
                "--train_path",
                str(self.path / name),
                "--arch",
                self.arch,
                "--dataset",
                self.dataset,
                "--trained_param",
                str(self.trained_param),
                "--target_rate",
                str(self.target_rate),
                *data_flags,
                *flags,
                *self.more_flags,
            ]
        )
        stopping.check()
        if code:
            logger.error("the run %s ended with exit code %d.", name, code)
            sys.exit(code)
        return self.folder(name).read_finished()


def run_process(command):
    """Runs a command and returns its exit code; a signal that asks this process to end goes on to
    it.
    """
    process, is_told = subprocess.Popen(command, stdout=subprocess.DEVNULL), False  # noqa: S603
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stopping.requested() and not is_told:
                process.terminate()
                is_told = True


def report_run(path):
    """Writes the report of a finished run into its folder again; prints a line of text and returns
    it.

    Raises:
        EkgError: the folder holds no finished run.
    """
    folder = RunFolder(path)
    text = write_report(folder.read_finished(), folder / REPORT_PICTURE, folder / REPORT_PAGE)
    print(text)
    print(f"results: {folder / REPORT_PAGE}", file=sys.stderr)
    return text

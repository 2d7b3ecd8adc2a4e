"""Runs of train_cifar.py, each in a process of its own that can be stopped and resumed."""

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
    """Runs of train_cifar.py that prune the same trained network at the same rate.

    Attributes:
        path: pathlib.Path of the folder with their run folders.
        arch: name of the network.
        dataset: name of the data set.
        data_path: path of its files, or None.
        trained_param: parameter file of the trained network.
        target_rate: share of the FLOPs to keep.
        more_flags: tuple of further flags for every run, which come last.
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

    def arguments(self, name, *flags):
        """Returns the command line of a run, a list of text; see finish()."""
        data_flags = ("--data_path", self.data_path) if self.data_path else ()
        return [
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

    def finish(self, name, *flags):
        """Returns the page.FinishedRun with this name, after starting or resuming it if needed.

        Args:
            name: name of its folder.
            flags: flags of this run only.

        Raises:
            Stopped: a signal requested a stop; the run has written a checkpoint.
            SystemExit: the run failed; the exit code is that of the run.
        """
        logger.info("run %s", name)
        stopping.check()
        code = run_process([sys.executable, str(SCRIPT), *self.arguments(name, *flags)])
        stopping.check()
        if code:
            logger.error("the run %s ended with exit code %d.", name, code)
            sys.exit(code)
        return self.folder(name).read_finished()


def run_process(command):
    """Runs a command and returns its exit code; a request to stop this process terminates it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    is_terminated = False
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if stopping.requested() and not is_terminated:
                process.terminate()
                is_terminated = True


def report_run(path):
    """Writes the report of a finished run into its folder again; prints and returns a summary.

    Raises:
        EkgError: the folder holds no finished run.
    """
    folder = RunFolder(path)
    text = write_report(folder.read_finished(), folder / REPORT_PICTURE, folder / REPORT_PAGE)
    print(text)
    print(f"results: {folder / REPORT_PAGE}", file=sys.stderr)
    return text

"""A disk that is full, or takes nothing more of this process, in every phase: one line, and the
same command goes on.
"""

import re
import subprocess

import pytest

from tests.helpers import runs
from tests.programs import full_disk, stress_resume

EXPECTED = r"cannot be written \([^;{}]*\); fix that, and start the same command again\.$|make room"
PHASES = ("subset", "search", "slim", "bank", "fine-tune", "report")


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "p.pkl"
    stress_resume.write_params(path)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB, or None where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        is_there = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_there = False
    yield folder if is_there else None
    if is_there:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run(params, folder, how="none", phase="none"):
    return runs.finish(
        runs.fork(
            "tests.programs.full_disk",
            how,
            phase,
            "--",
            *stress_resume.ARGUMENTS,
            "--trained_param",
            params,
            "--train_path",
            folder,
        )
    )[0]


def test_a_full_disk_ends_every_phase_with_one_line_and_the_run_resumes_when_there_is_space(
    params, small_disk, tmp_path
):
    code, output = run(params, tmp_path / "undisturbed")
    assert code == 0, output
    folder = (small_disk or tmp_path) / "run"
    obstacles = [("fill" if small_disk else "limit", phase) for phase in PHASES]
    if small_disk:
        obstacles.append(("limit", "fine-tune"))
    for how, phase in sorted(obstacles, key=lambda obstacle: PHASES.index(obstacle[1])):
        code, output = run(params, folder, how, phase)
        assert code == 2, output
        line = runs.error_line(output)
        assert str(folder) in line and re.search(EXPECTED, line), output
        if how == "fill":
            (small_disk / full_disk.FILLER).unlink()
    code, output = run(params, folder)
    assert code == 0 and "Traceback" not in output, output
    assert stress_resume.end_of(folder) == stress_resume.end_of(tmp_path / "undisturbed")

"""The console command before TensorFlow is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ekg
import ekg_command

ROOT = Path(__file__).parents[1]
WITHOUT_TENSORFLOW = (
    "import sys; sys.path[:0] = sys.argv[1:3]; sys.argv[:3] = ['ekg']; "
    "import ekg_command; ekg_command.main()"
)


def run(folder, *arguments):
    """Runs `ekg` with a folder in front of the module path, in a process of its own, without the
    variables of TensorFlow that this process has set.
    """
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(folder), str(ROOT), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("TF_")},
    )


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("--version", f"ekg {ekg.__version__}\n"), ("--help", ekg_command.usage() + "\n")],
)
def test_version_and_help_do_without_tensorflow(argument, expected, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = run(tmp_path, argument)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "error: a command is missing; there are prune, "), (["cut"], "error: no command cut; ")],
)
def test_another_command_is_refused_in_one_line(arguments, message, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = run(tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    ("tensorflow", "code", "line"),
    [
        ("raise KeyboardInterrupt", 130, "interrupted"),
        (
            "raise ModuleNotFoundError('none', name='tensorflow')",
            2,
            "error: ekg needs TensorFlow, and no build of it is installed; run pip install ",
        ),
    ],
)
def test_an_import_of_tensorflow_that_ends_early_is_one_line(tensorflow, code, line, tmp_path):
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    done = run(tmp_path, "inspect", "my network.keras")
    first, last = done.stderr.splitlines()
    assert first == "ekg inspect 'my network.keras': loading TensorFlow"
    assert done.returncode == code and last.startswith(line)


def test_environment_is_set_before_tensorflow_is_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'], os.environ['TF_CPP_MIN_LOG_LEVEL'],"
        " flush=True); raise KeyboardInterrupt"
    )
    assert run(tmp_path, "prune", "a.keras", "--quiet").stdout == "1 2\n"

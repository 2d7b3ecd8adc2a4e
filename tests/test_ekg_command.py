"""The console command before TensorFlow is imported."""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import analyze
import ekg
import ekg_command
import export
import prune
import train_cifar
import train_imagenet
from ekg.commands import evaluate

ROOT = Path(__file__).parents[1]
script_test = importlib.import_module("test")  # the standard library has a package of this name
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


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["prune", "a.keras", "--target_rates", "0.5", "--tarrget_rate", "0.4"], "--tarrget_rate"),
        (["evaluate", "run", "--data=x", "--datas=x", "--no-such"], "--datas --no-such"),
    ],
)
def test_unknown_flags_are_refused_before_tensorflow_is_imported(arguments, unknown, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = run(tmp_path, *arguments)
    message = f"error: unrecognized arguments: {unknown}. --help lists all arguments.\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize(
    "command",
    [
        ["train_cifar.py", "--epochs", "3"],
        ["analyze.py", "criteria", "--trained_param", "p.pkl", "--", "--epochs", "3"],
    ],
)
def test_unknown_flags_of_scripts_are_refused_before_tensorflow_is_imported(command, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    message = "error: unrecognized arguments: --epochs. --help lists all arguments.\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize(
    "program",
    [train_cifar, train_imagenet, prune, export, script_test, analyze, evaluate],
    ids=lambda module: module.__name__,
)
def test_every_flag_of_a_program_is_known_without_its_import(program, monkeypatch, capsys):
    flags = set()
    add_argument = argparse._ActionsContainer.add_argument

    def note(self, *names, **options):
        action = add_argument(self, *names, **options)
        flags.update(option for option in action.option_strings if option.startswith("--"))
        return action

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", note)
    with pytest.raises(SystemExit):
        program.parse_args(["--help"])
    capsys.readouterr()
    sources = [*ROOT.glob("ekg/**/*.py"), *ROOT.glob("*.py"), *ROOT.glob("analyses/*.py")]
    assert len(flags) > 5 and not ekg_command.unknown_flags(sorted(flags), sources)

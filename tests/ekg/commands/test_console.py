"""The commands of `ekg`: what their command lines mean."""

import pytest

import ekg_command
import export
from ekg.commands import console, prune
from ekg.errors import EkgError


def test_every_command_that_the_help_lists_is_there():
    assert list(ekg_command.COMMANDS) == list(console.MODULES)
    assert all(name in ekg_command.usage() for name in console.MODULES)


def test_the_model_comes_first_or_after_its_flag():
    options = ["--data_path", "x.npz", "--target_rate", "0.4"]
    first = console.parse_args("prune", ["my.keras", *options])
    assert first == console.parse_args("prune", ["--model", "my.keras", *options])
    assert first == prune.parse_args(["--model", "my.keras", *options])
    assert str(first.train_path) == "runs/my_0.4" and not first.inspect


def test_inspect_is_prune_with_a_flag():
    args = console.parse_args("inspect", ["my.keras", "--exclude", "head"])
    assert args.inspect and args.exclude == ["head"]
    assert args == prune.parse_args(["--model", "my.keras", "--inspect", "--exclude", "head"])


@pytest.mark.parametrize("command", console.MODULES)
def test_each_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        console.parse_args(command, ["--help"])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0 and out.startswith(f"usage: ekg {command} [-h]")
    assert "--data_path" in out and "(default: " in out


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("prune", ["my.keras"], "--data_path is needed"),
        ("prune", [], "required: --model"),
        ("evaluate", ["my.keras"], "required: --data_path"),
        ("evaluate", ["my.keras", "--data_path", "x", "--rescale", "1"], "--rescale takes 2 numb"),
        ("evaluate", ["my.keras", "--data_path", "x", "--image_size", "8"], "--image_size takes 2"),
        ("export", ["my.keras"], "required: --out"),
        (
            "export",
            ["my.keras", "--out", "a.tflite", "--quantize", "int8"],
            "from data: name --data_path. --help",
        ),
    ],
)
def test_a_usage_error_is_one_line(command, arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        console.parse_args(command, arguments)
    err = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--arch=ResNet-56", "--dataset=CIFAR10"])
def test_names_of_networks_and_data_sets_are_accepted_by_the_script_only(flag, capsys):
    arguments = ["--model", "my.pkl", "--out", "a.onnx", flag]
    assert export.parse_args(arguments).model.name == "my.pkl"
    with pytest.raises(SystemExit):
        console.parse_args("export", arguments)
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_for_a_parameter_file_the_command_names_the_script(command, tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"parameters")
    option = ["--out", str(tmp_path / "a.onnx")] if command == "export" else ["--data_path", "x"]
    args = console.parse_args(command, [str(tmp_path / "p.pkl"), *option])
    module, _ = console.MODULES[command]
    with pytest.raises(EkgError, match="architecture: test.py and export.py of the repository"):
        module.main(args)

"""What the curves of a run hold besides the training figures."""

import pytest

import train_cifar
import utils
from ekg.io import files
from tests.helpers import small_jobs

ARGUMENTS = (
    "--target_rate",
    "0.8",
    "--train_epoch",
    "2",
    "--baseline_epoch",
    "2",
    "--num_teacher",
    "2",
    "--batch_size",
    "40",
    "--subset_per_class",
    "40",
    "--search_batch_size",
    "60",
    "--val_batch_size",
    "40",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs, of which the second evaluates the test images after every second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("without", ()), ("with", ("--test_every", "2"))):
        small_jobs.run(
            train_cifar,
            small_jobs.make_large_data(),
            *ARGUMENTS,
            *more,
            "--train_path",
            folder / name,
        )
    return folder / "without", folder / "with"


def test_every_epoch_has_figures_of_the_validation_images(folders):
    for folder, tested in zip(folders, ([], [2])):
        for phase in ("baseline", "fine-tune"):
            lines = [
                line
                for line in files.read_json_lines(folder / "curves.jsonl")
                if line["phase"] == phase
            ]
            assert [line["step"] for line in lines] == [1, 2]
            assert all(0 <= line["val_top1"] <= 1 and line["val_loss"] > 0 for line in lines)
            assert [line["step"] for line in lines if "test_top1" in line] == tested


def test_evaluating_the_test_images_changes_nothing(folders):
    first, second = (utils.load_params(folder / "trained_param.pkl") for folder in folders)
    assert all((first[name] == second[name]).all() for name in first)
    assert files.read_json(folders[0] / "arguments.json") == files.read_json(
        folders[1] / "arguments.json"
    )

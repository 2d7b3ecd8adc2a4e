"""Networks of handwritten digits, and runs that train_cifar.py would make, stood in for by folders
of their form.
"""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

import dataloader
import nets
import utils
from analyses import runs
from tests.analyses.helpers import make_run


@pytest.fixture(scope="session")
def params(tmp_path_factory):
    """Folder with parameter files of two networks of ten classes and one of a hundred."""
    folder = tmp_path_factory.mktemp("params")
    for seed, (name, classes) in enumerate((("one", 10), ("two", 10), ("hundred", 100))):
        keras.utils.set_random_seed(seed)
        model = nets.build("ResNet-8", classes)
        for weight in model.weights:
            if weight.name == "gamma":
                weight.assign(np.random.default_rng(seed).uniform(0.3, 0.8, weight.shape))
        utils.save_params(model, folder / f"{name}.pkl")
    return folder


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """Lets data sets have 160 training and 40 test images."""
    load = dataloader.load

    def load_few(*args):
        data = load(*args)
        return dataclasses.replace(
            data, train=data.train.take(np.arange(160)), test=data.test.take(np.arange(40))
        )

    monkeypatch.setattr(dataloader, "load", load_few)


@pytest.fixture
def started(params, monkeypatch):
    """Lets runs be made at once; the list of the commands that would have made them."""
    commands = []

    def run_process(command):
        commands.append(command)
        flags = dict(zip(command[2::2], command[3::2]))
        path = Path(flags["--train_path"])
        if not path.exists():
            names = ("arch", "search_teacher", "finetune_teacher", "criterion")
            make_run(
                path,
                params,
                0.9 + 0.01 * int(flags.get("--seed", 0)),
                **{name: flags[f"--{name}"] for name in names if f"--{name}" in flags},
            )
        return 0

    monkeypatch.setattr(runs, "run_process", run_process)
    return commands

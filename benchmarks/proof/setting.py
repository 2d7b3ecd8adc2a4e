"""Where the proof works, its images and its unpruned networks."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
from pathlib import Path
from typing import Any

import dataloader
import keras
import nets
import numpy as np
import op_utils
import train_cifar
import utils
from ekg.data import augment
from ekg.io import files
from ekg.data.dataset import Dataset, Split, mixed_order
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.run.arguments import describe
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.lock import LOCK
from ekg.network.supernet import Supernet
from ekg.run.phases import train_baseline as train_of_job
from ekg.run.settings import JobSettings, RunSettings

from benchmarks.proof import recipes, runs

logger = logging.getLogger(__name__)

DATASET, ALL_IMAGES_OF = (
    "CIFAR10",
    ("ResNet-56",),
)  # the shared ResNet-56 was trained on all of them
PER_CLASS = 1000  # training images
BATCH = 256  # images that share batch statistics, and of evaluations
PRECISION = "bfloat16"  # of trainings
BASELINE_EPOCHS = 200
LEAST_TRAIN_TOP1 = 98.0  # %, of an unpruned network on its clean training images
VIEW_SEED = 5  # of the views of D_val


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the proof reads and writes.

    Attributes:
        data_path: CIFAR-10, as dataloader.load() takes it.
        work: pathlib.Path of the folder of checkpoints and networks.
        records: pathlib.Path of the folder of records, searches and unpruned networks.
        peer_env: pathlib.Path of Torch-Pruning's environment.
        resnet56: pathlib.Path of the parameter file of a trained ResNet-56, or None.
    """

    data_path: str
    work: Path
    records: Path
    peer_env: Path
    resnet56: Path | None = None

    def record(self, run):
        """Returns the path of a Run's record."""
        return self.records / f"{run.name}.json"

    def folder(self, run):
        """Returns the path of a Run's folder."""
        return self.work / "runs" / run.name


@contextlib.contextmanager
def alone(path):
    """Waits until no other process is in here with this folder, which is made if it is not there.

    Two runs may need one search: the second one finds what the first one left.

    Args:
        path: pathlib.Path of the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    with open(path / LOCK, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- images


def first_of_each_class(data, count):
    """Returns a data set with the first `count` training images of each class alone, in their
    order.

    Raises:
        EkgError: a class has fewer images.
    """
    smallest = int(np.bincount(data.train.labels, minlength=data.num_classes).min())
    if smallest < count:
        raise EkgError(
            f"`data_path`: {count} images of each class are needed, and the smallest has "
            f"{smallest}; name the whole data set."
        )
    chosen = [
        np.flatnonzero(data.train.labels == number)[:count] for number in range(data.num_classes)
    ]
    return dataclasses.replace(data, train=data.train.take(np.sort(np.concatenate(chosen))))


@dataclasses.dataclass(frozen=True, eq=False)
class OtherValidation(Dataset):
    """A data set whose search evaluates on other images than the last ones of each class.

    Attributes:
        validation: function (count, seed) -> Split of so many images of each class.
    """

    validation: Any = None

    def last_of_each_class(self, count, seed):
        return self.validation(count, seed)


def with_validation(data, cut, whole):
    """Returns the data set that a search runs on.

    Args:
        data: data.Dataset of the first images of each class.
        cut: "viewed" takes one plain view of each image of D_val, "unseen" the last images of each
            class of all the data, of which none is in `data`; others leave D_val as it is.
        whole: data.Dataset of all images.
    """
    if cut not in ("viewed", "unseen"):
        return data
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    if cut == "unseen":
        return OtherValidation(**values, validation=whole.last_of_each_class)

    def viewed(count, seed):
        split = data.last_of_each_class(count, seed)
        draws = np.random.default_rng([VIEW_SEED, seed]).random((3, len(split)), np.float32)
        return Split(augment.flip_and_crop(split.images, *draws, data.flips).numpy(), split.labels)

    return OtherValidation(**values, validation=viewed)


# ---------------------------------------------------------------- what a run needs


class Setting:
    """What a Run needs besides itself, made when it is asked for.

    Attributes:
        run: Run.
        place: Place.
        compute: Compute of training.
    """

    def __init__(self, run, place):
        self.run, self.place = run, place
        self.compute = Compute(Team(op_utils.make_strategy()), op_utils.use_xla("auto"), PRECISION)

    @functools.cached_property
    def whole_data(self):
        return dataloader.load(DATASET, self.place.data_path)

    @functools.cached_property
    def data(self):
        """data.Dataset that the run trains and tests on."""
        if self.run.arch in ALL_IMAGES_OF:
            return self.whole_data
        return first_of_each_class(self.whole_data, PER_CLASS)

    @functools.cached_property
    def train_batches(self):
        """data.Batches of the training images as they are, all classes mixed."""
        return self.data.batches(self.data.train, BATCH, mixed_order(self.data.strata))

    @functools.cached_property
    def baseline(self):
        """pathlib.Path of the parameter file of the unpruned network; it is trained if it is not
        there.
        """
        if self.run.arch in ALL_IMAGES_OF:
            if self.place.resnet56 is None:
                raise EkgError(
                    f"`resnet56` is needed for {self.run.name}: the parameter file of the network."
                )
            return self.place.resnet56
        seed = runs.BASELINES[self.run.seed]
        path = self.place.records / f"baseline{seed}.pkl"
        with alone(self.place.work / "baselines" / str(seed)):
            if not path.exists():
                train_baseline(self, seed, path)
            if not path.with_suffix(".json").exists():
                judge_baseline(self, path)
        return path

    def load(self, path):
        """Returns the network, pruned or not, in a parameter file, made for training."""
        with self.compute.team.strategy.scope():
            return nets.from_params(
                self.run.arch, utils.load_params(path), self.data.num_classes, path
            )

    def job(self, settings, data, path):
        """Returns the Job of a part of the method in a folder of its own, which begins or resumes.

        Args:
            settings: {name of an attribute of JobSettings: its value}.
            data: data.Dataset.
            path: pathlib.Path of the folder.
        """
        made = JobSettings(**settings)
        model = nets.build(self.run.arch, data.num_classes)
        arguments = {name: vars(value) for name, value in settings.items()} | describe(
            data, self.compute.use_xla
        )
        folder = RunFolder.prepare(path, json.loads(json.dumps(arguments)))
        compute = dataclasses.replace(self.compute, dtype=made.run.precision)
        return Job(made, data, Supernet(model), compute, folder)


def train_baseline(setting, seed, path):
    """Trains an unpruned network by the paper's recipe for CIFAR and keeps its parameters."""
    run_settings = RunSettings(seed=seed, precision=PRECISION)
    job = setting.job(
        {"run": run_settings}, setting.data, setting.place.work / "baselines" / str(seed)
    )
    keras.utils.set_random_seed(seed)
    baseline = op_utils.Baseline(
        train_cifar.BASELINE,
        BASELINE_EPOCHS,
        lambda: nets.build(setting.run.arch, setting.data.num_classes),
    )
    trained = train_of_job(job, baseline).read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, lambda file: file.write(trained))


def judge_baseline(setting, path):
    """Keeps how well an unpruned network knows its clean training images, and the test images."""
    model, data = setting.load(path), setting.data
    known = {
        "parameters": files.sha256(path),
        "train_top1": recipes.top1(model, data.batches(data.train, BATCH)),
        "test_top1": recipes.top1(model, data.batches(data.test, BATCH)),
    }
    if known["train_top1"] < LEAST_TRAIN_TOP1:
        logger.warning(
            "%s: knows %.2f %% of its clean training images; the regime of the proof needs "
            "%.0f %%.",
            path,
            known["train_top1"],
            LEAST_TRAIN_TOP1,
        )
    files.write_json(path.with_suffix(".json"), known)

"""The common job of the two training scripts, and names that scripts take from the library.

Baselines are trained here, on ekg's compiled, distributed, accumulating step.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import utils as utils  # before TensorFlow: it sets TensorFlow's environment
from ekg import command_line
from ekg.commands import train_targets
from ekg.commands.train_flags import SHARED_FLAGS as SHARED_FLAGS
from ekg.commands.train_flags import parse_training_args as parse_training_args
from ekg.commands.train_script import Script
from ekg.data.dataset import TrainingBatches
from ekg.devices.kind import COMPILE_CHOICES as COMPILE_CHOICES
from ekg.devices.kind import use_xla as use_xla
from ekg.devices.strategy import DeviceSettings, describe_devices, make_strategy
from ekg.devices.team import Team
from ekg.distil import losses
from ekg.phases import Training
from ekg.run.check import check_batch as check_batch
from ekg.train.step import Schedule, Trainer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BaselineRecipe:
    """What a script fixes of its baselines' training: epochs by default, and the rest of the SGD
    step schedule.
    """

    epochs: int
    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    weight_decay: float


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Trains the network that is pruned, where none is given: labels alone, one view, flipped and
    cropped.

    Attributes:
        recipe: BaselineRecipe.
        epochs: length of the training.
        build: function that returns the unpruned keras.Model with new weights.
    """

    recipe: BaselineRecipe
    epochs: int
    build: Callable

    def training(self, job, model):
        """Returns the phases.Training of a network for a Job."""
        chosen, recipe = job.settings.fine_tuning, self.recipe
        trainer = Trainer(
            job.team.strategy,
            model,
            losses.baseline(job.data, chosen.label_smoothing),
            weight_decay=recipe.weight_decay,
            options=job.step_options,
            divisor=job.data.task.scale(job.data.train.labels),
        )
        batches = TrainingBatches(
            job.data, chosen.batch_size, job.settings.run.seed, num_views=1, phase="baseline"
        )
        schedule = Schedule(
            recipe.learning_rate,
            recipe.decay_points,
            recipe.decay_rate,
            self.epochs,
            chosen.warmup_epoch,
        )
        return Training("baseline", trainer, batches, schedule)


def prune(args, recipe, load_data, build, from_params):
    """Runs the job of a training script and returns the rows of the final table, which it prints.

    With several target rates there is one job per rate, from the easiest to the hardest, and the
    last one's rows are returned. With an accuracy goal there is one job per rate that is tried.

    Args:
        args: as parse_training_args() returns.
        recipe: BaselineRecipe.
        load_data: function that returns the data.Dataset.
        build: (arch, num_classes) -> unpruned keras.Model.
        from_params: (arch, params, num_classes, source) -> keras.Model of the widths that
            the parameters have.
    """
    baseline = functools.partial(Baseline, recipe, args.baseline_epoch)
    script = Script(Path(__file__).parent, load_data, build, from_params, baseline)
    team = Team(make_strategy(command_line.from_args(DeviceSettings, args)))
    logger.info(
        "%s on %s, to %s, on %s; run folder %s",
        args.arch,
        args.dataset,
        command_line.describe_targets(args),
        describe_devices(team.strategy),
        args.train_path,
    )
    with team.sharing_failures():
        return train_targets.prune(script, args, team)

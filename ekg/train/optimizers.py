"""An optimizer and a schedule of a user's own, in place of SGD with Nesterov momentum and its
steps.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from ekg.errors import EkgError, first_line
from ekg.train.step import Schedule, make_sgd

_STEP_SETTINGS = ("decay_points", "decay_rate", "warmup_epoch")
_OF_STEPS = keras.optimizers.schedules.LearningRateSchedule


@dataclasses.dataclass(frozen=True)
class OwnSchedule:
    """A learning rate by a function, in the place of a step.Schedule.

    Attributes:
        rate: keras LearningRateSchedule, of training steps; or a function from the epoch, which may
            be a fraction, to the learning rate.
        epochs: length of the training.
        num_steps: training steps of an epoch.
        setting: name of the setting that it comes from.
    """

    rate: Callable
    epochs: int
    num_steps: int
    setting: str = "schedule"

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be a fraction."""
        rate = float(
            self.rate(round(epoch * self.num_steps) if isinstance(self.rate, _OF_STEPS) else epoch)
        )
        if not (math.isfinite(rate) and rate >= 0):
            raise EkgError(
                f"`schedule` gives the learning rate {rate:g} at epoch {epoch:g}; it must be 0 or "
                "more."
            )
        return rate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimizer, learning rate and weight decay of fine-tuning: the published ones, unless a user
    says otherwise.

    Attributes:
        optimizer: keras Optimizer, read and never changed; None takes the published SGD.
        schedule: as OwnSchedule.rate; None takes that of the optimizer, or steps.
        weight_decay: of an optimizer of the user's own, added to the gradient besides what it does
            itself.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    schedule: Callable | None = None
    weight_decay: float = 0.0

    @classmethod
    def take(cls, tuning):
        """Returns (Recipe, {name: value} of the other settings) from those of fine-tuning.

        Args:
            tuning: {name: value} of FineTuneSettings, "optimizer" and "schedule"; stays as it is.

        Raises:
            EkgError: the optimizer cannot be made again, or a setting has no effect beside it.
        """
        tuning = dict(tuning)
        optimizer, schedule = (tuning.pop(name, None) for name in ("optimizer", "schedule"))
        if optimizer is not None:
            _check_optimizer(optimizer)
            if schedule is None and isinstance(optimizer._learning_rate, _OF_STEPS):
                schedule = optimizer._learning_rate
        if schedule is not None and not callable(schedule):
            raise EkgError(
                "`schedule` must be a keras.optimizers.schedules.LearningRateSchedule, or a "
                f"function from the epoch to the learning rate; received {schedule!r}."
            )
        without_effect = [
            *["learning_rate"] * (optimizer is not None or schedule is not None),
            *_STEP_SETTINGS * (schedule is not None),
        ]
        for name in without_effect:
            if name in tuning:
                raise EkgError(
                    f"`{name}` has no effect here: `optimizer` and `schedule` say the learning "
                    "rate; leave it out."
                )
        return cls(optimizer, schedule, tuning.get("weight_decay", 0.0)), tuning

    def make_optimizer(self):
        """Returns a new optimizer like the user's, without state, or the published one; its
        learning rate is set later.
        """
        if self.optimizer is None:
            return make_sgd()
        made = type(self.optimizer).from_config(
            {**self.optimizer.get_config(), "learning_rate": 0.0}
        )
        pattern = getattr(self.optimizer, "_exclude_from_weight_decay_pattern", None)
        if pattern is not None:
            made.exclude_from_weight_decay(var_names=[pattern.pattern])
        return made

    def make_schedule(self, settings, num_steps):
        """Returns the schedule of a training.

        Args:
            settings: FineTuneSettings.
            num_steps: training steps of an epoch.
        """
        if self.schedule is not None:
            return OwnSchedule(self.schedule, settings.train_epoch, num_steps)
        first = (
            settings.learning_rate
            if self.optimizer is None
            else float(self.optimizer.learning_rate)
        )
        return Schedule(
            first,
            settings.decay_points,
            settings.decay_rate,
            settings.train_epoch,
            settings.warmup_epoch,
            setting="learning_rate" if self.optimizer is None else "optimizer",
        )

    def decay(self, settings):
        """Returns what is added to the gradient, times the weight: of an own optimizer nothing,
        unless it is asked for.
        """
        return settings.weight_decay if self.optimizer is None else self.weight_decay

    def num_slots(self):
        """Returns how many numbers the optimizer keeps of each weight."""
        optimizer, weight = self.make_optimizer(), keras.Variable(np.zeros((2, 3), np.float32))
        optimizer.build([weight])
        return sum(tuple(variable.shape) == (2, 3) for variable in optimizer.variables)


def _check_optimizer(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise EkgError(f"`optimizer` must be a keras.optimizers.Optimizer; received {optimizer!r}.")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise EkgError(
            "`optimizer` is a LossScaleOptimizer; give the one inside: `precision` float16 "
            "scales the loss itself."
        )
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise EkgError(
            "`optimizer` excludes variables of another network from its weight decay; exclude "
            'them by name, as in exclude_from_weight_decay(var_names=["bias"]).'
        )
    try:
        Recipe(optimizer).make_optimizer()
    except Exception as error:  # whatever a class of the user's own raises
        raise EkgError(
            f"`optimizer` ({type(optimizer).__name__}) cannot be made again of its get_config(): "
            f"{first_line(error)}"
        ) from error

"""Optimizers and learning rate schedules of the user, instead of SGD with a step schedule."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from ekg.errors import EkgError, first_line
from ekg.train.step import Schedule, make_sgd

_STEP_SETTINGS = ("decay_points", "decay_rate", "warmup_epoch")
_KerasSchedule = keras.optimizers.schedules.LearningRateSchedule  # from training steps to rates


@dataclasses.dataclass(frozen=True)
class OwnSchedule:
    """A learning rate given by a function, with the interface of step.Schedule.

    Attributes:
        rate: Keras LearningRateSchedule; or a function from the epoch, which may be fractional, to
            the learning rate.
        epochs: number of epochs of the training.
        num_steps: number of training steps per epoch.
        setting: name of the setting that the function comes from.
    """

    rate: Callable
    epochs: int
    num_steps: int
    setting: str = "schedule"

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be fractional."""
        position = epoch
        if isinstance(self.rate, _KerasSchedule):
            position = round(epoch * self.num_steps)
        rate = float(self.rate(position))
        if not (math.isfinite(rate) and rate >= 0):
            raise EkgError(
                f"`schedule` gives the learning rate {rate:g} at epoch {epoch:g}; it must be 0 or "
                "more."
            )
        return rate


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimizer, learning rate and weight decay of fine-tuning, the published ones by default.

    Attributes:
        optimizer: Keras Optimizer, which is never changed; None uses the published SGD.
        schedule: rate of an OwnSchedule; None uses the optimizer's, or a step schedule.
        weight_decay: factor of the weight decay that is added to the gradient for a user's
            optimizer, on top of the optimizer's own.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    schedule: Callable | None = None
    weight_decay: float = 0.0

    @classmethod
    def take(cls, tuning):
        """Returns (Recipe, {name: value} of all other settings), given those of fine-tuning.

        Args:
            tuning: {name: value} of FineTuneSettings, "optimizer" and "schedule"; not changed.

        Raises:
            EkgError: the optimizer cannot be recreated, or a setting has no effect with it.
        """
        tuning = dict(tuning)
        optimizer = tuning.pop("optimizer", None)
        schedule = tuning.pop("schedule", None)
        if optimizer is not None:
            _check_optimizer(optimizer)
            if schedule is None and isinstance(optimizer._learning_rate, _KerasSchedule):
                schedule = optimizer._learning_rate
        if schedule is not None and not callable(schedule):
            raise EkgError(
                "`schedule` must be a keras.optimizers.schedules.LearningRateSchedule, or a "
                f"function from the epoch to the learning rate; received {schedule!r}."
            )
        without_effect = []
        if optimizer is not None or schedule is not None:
            without_effect.append("learning_rate")
        if schedule is not None:
            without_effect += _STEP_SETTINGS
        for name in without_effect:
            if name in tuning:
                raise EkgError(
                    f"`{name}` has no effect here: `optimizer` and `schedule` set the learning "
                    "rate; leave it out."
                )
        return cls(optimizer, schedule, tuning.get("weight_decay", 0.0)), tuning

    def make_optimizer(self):
        """Returns a new optimizer like the user's, or the published one, with learning rate 0."""
        if self.optimizer is None:
            return make_sgd()
        config = {**self.optimizer.get_config(), "learning_rate": 0.0}
        optimizer = type(self.optimizer).from_config(config)
        pattern = getattr(self.optimizer, "_exclude_from_weight_decay_pattern", None)
        if pattern is not None:
            optimizer.exclude_from_weight_decay(var_names=[pattern.pattern])
        return optimizer

    def make_schedule(self, settings, num_steps):
        """Returns the schedule of a training.

        Args:
            settings: FineTuneSettings.
            num_steps: number of training steps per epoch.
        """
        if self.schedule is not None:
            return OwnSchedule(self.schedule, settings.train_epoch, num_steps)
        if self.optimizer is None:
            learning_rate, setting = settings.learning_rate, "learning_rate"
        else:
            learning_rate, setting = float(self.optimizer.learning_rate), "optimizer"
        return Schedule(
            learning_rate,
            settings.decay_points,
            settings.decay_rate,
            settings.train_epoch,
            settings.warmup_epoch,
            setting=setting,
        )

    def decay(self, settings):
        """Returns the weight decay to add to the gradient; 0 by default for a user's optimizer."""
        return settings.weight_decay if self.optimizer is None else self.weight_decay

    def num_slots(self):
        """Returns how many numbers the optimizer stores per weight."""
        optimizer = self.make_optimizer()
        weight = keras.Variable(np.zeros((2, 3), np.float32))
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
    except Exception as error:  # a user's class may raise anything
        raise EkgError(
            f"`optimizer` ({type(optimizer).__name__}) cannot be recreated from its get_config(): "
            f"{first_line(error)}"
        ) from error

"""The settings of slimming, memory bank and fine-tuning."""

import dataclasses
from typing import Any

from ekg.errors import EkgError
from ekg.settings import (
    COUNT,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    SEARCH,
    TRAINING,
    Range,
    Rule,
    Settings,
    setting,
)

FINETUNE_TEACHERS = ("ensemble", "single", "none")
_DISTILS = Rule("finetune_teacher", ("ensemble", "single"), "nothing is distilled")
_HAS_BANK = Rule("finetune_teacher", ("ensemble",), "only the memory bank has teachers")


@dataclasses.dataclass(frozen=True)
class SlimSettings(Settings):
    """What becomes of the network that is cut out."""

    repair: bool = setting(
        False,
        "fit the kernels of the network that is cut out to the unpruned network, by least squares "
        "and without labels",
        TRAINING,
    )


@dataclasses.dataclass(frozen=True)
class FineTuneSettings(Settings):
    """How the memory bank is built and the network trained after it: SGD with a step schedule."""

    finetune_teacher: str = setting(
        "ensemble",
        "memory bank, the unpruned network, or labels alone",
        TRAINING,
        choices=FINETUNE_TEACHERS,
    )
    num_teacher: int = setting(
        5, "teachers in the memory bank, K", TRAINING, range=COUNT, works_if=_HAS_BANK
    )
    temperature: float = setting(
        4.0, "temperature of the distillation, τ", TRAINING, range=POSITIVE, works_if=_DISTILS
    )
    learning_rate: float = setting(
        0.01, "learning rate at the start of fine-tuning", TRAINING, range=POSITIVE
    )
    decay_points: tuple[float, ...] = setting(
        (0.3, 0.6, 0.8),
        "fractions of the epochs at which the learning rate falls",
        TRAINING,
        range=INNER_SHARE,
    )
    decay_rate: float = setting(
        0.2, "factor of the learning rate at each of them", TRAINING, range=POSITIVE
    )
    warmup_epoch: int = setting(
        0,
        "epochs in which the learning rate rises linearly, in fine-tuning and baseline training",
        TRAINING,
        range=NOT_NEGATIVE,
    )
    # The epoch before the search uses it, too; so it affects what is found.
    weight_decay: float = setting(
        5e-4, "added to the gradient, times the weight", SEARCH, range=NOT_NEGATIVE
    )
    label_smoothing: float = setting(
        0.0,
        "share of the labels spread over all classes, in fine-tuning and baseline training",
        TRAINING,
        range=Range(0, 1, is_high_open=True),
    )
    batch_size: int = setting(
        128, "images per training step, over all devices", TRAINING, range=COUNT
    )
    train_epoch: int = setting(100, "epochs of fine-tuning", TRAINING, range=COUNT)
    num_views: int | None = setting(
        None,
        "random views of each image in fine-tuning: 1, flipped and cropped, or 2, whose colours "
        "change, too; without it 1 where labels alone teach and 2 where a teacher does",
        TRAINING,
        range=Range(1, 2),
        may_be_none=True,
    )

    def views_of(self, data: Any) -> int:
        """Returns the number of random views of each training image.

        Args:
            data: data set; it has data.num_views views of an image at most.

        Raises:
            EkgError: the data set has fewer views than are asked for.
        """
        if self.num_views is None:
            return 1 if self.finetune_teacher == "none" else data.num_views
        if self.num_views > data.num_views:
            raise EkgError(
                f"`num_views` {self.num_views} has no effect here: the data has no random "
                "views, so all would be alike; name `augment`, or leave it out."
            )
        return self.num_views

    def __post_init__(self):
        super().__post_init__()
        if any(later <= point for point, later in zip(self.decay_points, self.decay_points[1:])):
            raise EkgError(
                f"`decay_points` must rise; received "
                f"{' '.join(f'{point:g}' for point in self.decay_points)}."
            )
        if self.warmup_epoch > self.train_epoch:
            raise EkgError(
                f"`warmup_epoch` {self.warmup_epoch} is longer than the training, `train_epoch` "
                f"{self.train_epoch}; make it shorter."
            )

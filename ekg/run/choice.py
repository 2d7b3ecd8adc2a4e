"""Which network a job hands out: the fine-tuned one, or that which was cut out where fine-tuning
made it worse.
"""

import dataclasses

from ekg.data.dataset import batch_edges

CUT, TUNED = "slimmed", "fine-tuned"  # their rows of the final table
FEW_STEPS = 200  # of fine-tuning, below which it seldom makes up for what was cut


@dataclasses.dataclass(frozen=True)
class Choice:
    """The better of two networks by their loss on the images that the search evaluates on.

    Attributes:
        name: CUT or TUNED.
        losses: {CUT or TUNED: mean loss}.
        errors: {CUT or TUNED: its standard error}.
        examples: number of the images.
        steps: of the fine-tuning.
    """

    name: str
    losses: dict[str, float]
    errors: dict[str, float]
    examples: int
    steps: int

    @classmethod
    def between(cls, cut, tuned, steps):
        """Returns the Choice between two evaluate.Metrics; a loss that is not finite is the worse
        one.

        Args:
            cut: of the network that was cut out.
            tuned: of the fine-tuned one.
            steps: of the fine-tuning.
        """
        measured = {CUT: cut, TUNED: tuned}
        return cls(
            TUNED if tuned.loss <= cut.loss else CUT,
            {name: one.loss for name, one in measured.items()},
            {name: one.errors["loss"] for name, one in measured.items()},
            cut.examples,
            steps,
        )

    def __str__(self):
        cut, tuned = (f"{self.losses[name]:.4f} ±{self.errors[name]:.4f}" for name in (CUT, TUNED))
        where = f"on the {self.examples} images that the search evaluates on"
        if self.name == TUNED:
            return (
                f"the result is the fine-tuned network: its loss {where} is {tuned}, without "
                f"fine-tuning {cut}"
            )
        few = f" of {self.steps} steps" * (self.steps < FEW_STEPS)
        return (
            f"the result is the network that was cut out: the fine-tuning{few} made it worse, its "
            f"loss {where} is {cut}, after it {tuned}; train longer, or with a lower "
            "`learning_rate`"
        )


def count_steps(settings, data):
    """Returns the training steps of a job's fine-tuning.

    Args:
        settings: JobSettings.
        data: data set.
    """
    steps_of_epoch = len(batch_edges(len(data.train), settings.fine_tuning.batch_size)) - 1
    return settings.fine_tuning.train_epoch * steps_of_epoch

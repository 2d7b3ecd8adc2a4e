"""The settings of a run, and all that a job is asked for."""

import dataclasses

from ekg.deploy.formats import AUTO_RUNTIMES, FORMATS, INT8, RUNTIMES
from ekg.devices.compute import AUTO_FORMAT, DTYPES
from ekg.distil.settings import FineTuneSettings, SlimSettings
from ekg.errors import EkgError
from ekg.searching.settings import SearchSettings, SubsetSettings
from ekg.searching.targets import Target
from ekg.settings import COUNT, MACHINE, NOT_NEGATIVE, SEARCH, TRAINING, Range, Settings, setting
from ekg.train.optimizers import Recipe

MAX_SEED = 2**32 - 1  # NumPy takes no larger one


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """How a run is computed."""

    val_batch_size: int = setting(256, "images per step of an evaluation", MACHINE, range=COUNT)
    sync_bn: bool = setting(
        False,
        "batch norms in training take the statistics of the whole batch, over all devices",
        TRAINING,
    )
    accum: int = setting(
        1,
        "micro-batches that a device's part of a batch is cut into, in training, search and "
        "memory bank",
        SEARCH,
        range=COUNT,
    )
    precision: str = setting(
        "float32",
        "number format of convolutions and activations in baseline training and fine-tuning; "
        "weights are float32; auto: bfloat16 where the processor has it and a step is faster",
        TRAINING,
        choices=(*DTYPES, AUTO_FORMAT),
    )
    search_precision: str = setting(
        "float32", "number format of search and memory bank", SEARCH, choices=DTYPES
    )
    tf32: bool = setting(
        True,
        "let GPUs that can multiply float32 in TensorFloat-32, in training and memory bank; the "
        "search and second derivatives never do",
        SEARCH,
    )
    test_every: int = setting(
        0,
        "epochs of training between evaluations of the test images, for the curve alone; 0: none",
        MACHINE,
        range=NOT_NEGATIVE,
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes of training between checkpoints within an epoch", MACHINE, range=NOT_NEGATIVE
    )
    runtimes: tuple[str, ...] = setting(
        (AUTO_RUNTIMES,),
        "runtimes whose latency the final table shows: TensorFlow at batches of 1 and 256, "
        "others at 1 on one thread; auto: tensorflow, and litert where it is installed and takes "
        "the network",
        MACHINE,
        choices=(*RUNTIMES, AUTO_RUNTIMES),
    )
    exports: tuple[str, ...] = setting(
        (),
        "formats in which the unpruned and the pruned network are written, too, with proof that "
        "they compute the same; int8: litert in 8 bits, whose accuracy and time the table shows",
        MACHINE,
        choices=(*FORMATS, INT8),
    )
    strict: bool = setting(
        False,
        "refuse to resume on another machine, or with other threads or kernels, where the last "
        "digits may differ",
        MACHINE,
    )
    seed: int = setting(
        0, "seed of initial weights, order and augmentation", SEARCH, range=Range(0, MAX_SEED)
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sync_bn and self.accum > 1:
            raise EkgError(
                "`sync_bn` and `accum` exclude each other: statistics of the whole batch need it "
                "at once."
            )


@dataclasses.dataclass(frozen=True)
class JobSettings:
    """Everything a pruning job is asked for besides its data, its network and its devices.

    Attributes:
        fine_tunes: whether there is a memory bank and fine-tuning, or the job ends with the pruned
            network.
        hands_out_better: whether the network that was cut out is handed out where fine-tuning made
            it worse.
        writes_page: whether it leaves a picture and a page, which need matplotlib.
        target: a Target of the user's own, besides those of the search's settings, or None.
        recipe: optimizers.Recipe of fine-tuning.
    """

    subset: SubsetSettings = SubsetSettings()
    search: SearchSettings = SearchSettings()
    fine_tuning: FineTuneSettings = FineTuneSettings()
    run: RunSettings = RunSettings()
    slim: SlimSettings = SlimSettings()
    fine_tunes: bool = True
    hands_out_better: bool = False
    writes_page: bool = True
    target: Target | None = None
    recipe: Recipe = Recipe()

    def parts(self):
        """Returns the settings of all parts, each a Settings."""
        return self.subset, self.search, self.fine_tuning, self.run, self.slim

    def targets(self):
        """Returns the Target of the search."""
        return self.search.targets(self.target)

"""All runs of the proof, in the order in which they are made. A run is named by what it is."""

import dataclasses
import itertools

EPOCHS, FEW_EPOCHS = 40, 5  # of fine-tuning, alike for all arms
EPOCHS_OF_RESNET56 = 8  # on all 50 000 images
RATES = (0.45, 0.3)
FIRST_SEEDS, LAST_SEEDS = (0, 1), (2,)  # the decisive arms have the first ones before all else
SEEDS = FIRST_SEEDS + LAST_SEEDS
BASELINES = {0: 0, 1: 1, 2: 0}  # seed of a run -> seed of the training of its unpruned network
BEST_TEACHER = "single"  # of the arms that take one teacher for all
PEERS = ("group-taylor", "group-l2")  # cuts of another program
STARTS = (("labels", False), (BEST_TEACHER, False), (BEST_TEACHER, True))  # teacher, is_repaired

TEACHERS = {
    "labels": "labels alone",
    "bank": "the memory bank",
    "clean": "Θ₀ on the clean image",
    "single": "Θ₀ on each view",
    "five": "five teachers on each view, with G",
}
# What finds the sub-network: first the search and its variants, then others.
SEARCHES = {
    "ekg": "the search",
    "published": "the search by the released program's rule",
    "params": "the search, with group Taylor's share of parameters",
    "viewed": "the search on one view of each image of D_val",
    "unseen": "the search on images that the network was not trained on",
}
CUTS = SEARCHES | {
    "group-taylor": "Torch-Pruning, group Taylor",
    "group-l2": "Torch-Pruning, group L2",
    "uniform": "uniform widths",
    "random": "random widths",
    "unpruned": "not pruned",
}
CHANGES = {
    "": "",
    "cosine": "cosine schedule",
    "ema": "average of the weights over steps",
    "squared": "distillation weighted τ²",
    "twice": "distillation weighted twice",
    "by-image": "G for each image by itself",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and what it starts from.

    Attributes:
        cut: what finds the sub-network, one of CUTS.
        teacher: of fine-tuning, one of TEACHERS.
        seed: of search, order and views; it picks the unpruned network, too.
        rate: share of the FLOPs to keep; 1 of a network that is not pruned.
        num_views: views of each image.
        epochs: of fine-tuning.
        is_repaired: whether the cut network is repaired before its training.
        change: of the recipe, one of CHANGES.
        arch: name of the network.
    """

    cut: str
    teacher: str
    seed: int
    rate: float = 0.45
    num_views: int = 2
    epochs: int = EPOCHS
    is_repaired: bool = False
    change: str = ""
    arch: str = "ResNet-20"

    @property
    def is_searched(self):
        return self.cut in SEARCHES

    @property
    def arm(self):
        """What runs of several seeds have in common, as text that may be part of a file's name."""
        parts = (
            self.arch.lower().replace("resnet-", "r"),
            f"{self.rate:g}",
            self.cut,
            "repaired" * self.is_repaired,
            self.teacher,
            "v1" * (self.num_views == 1),
            self.change,
            f"e{self.epochs}",
        )
        return "-".join(filter(None, parts))

    @property
    def name(self):
        return f"{self.arm}-s{self.seed}"

    @property
    def title(self):
        """What the run is, in words."""
        views = "one view" if self.num_views == 1 else "two views"
        return ", ".join(
            filter(
                None,
                (
                    self.arch,
                    f"{self.rate:g}" * (self.cut != "unpruned"),
                    CUTS[self.cut],
                    "repaired" * self.is_repaired,
                    TEACHERS[self.teacher],
                    views,
                    CHANGES[self.change],
                    f"{self.epochs} epochs",
                ),
            )
        )


def with_seeds(seeds, *runs):
    """Returns the runs with each of the seeds; all of one seed come before those of the next."""
    return [dataclasses.replace(run, seed=seed) for seed in seeds for run in runs]


def arms_of_teachers():
    """Returns the decisive arms: what each teacher is worth on the searched network at .45."""
    return [Run("ekg", teacher, 0) for teacher in ("labels", "bank", "single", "clean", "five")] + [
        Run("ekg", "labels", 0, num_views=1)
    ]


def arms_of_few_epochs():
    """Returns the arms of a short training, plain and repaired."""
    return [
        Run("ekg", teacher, 0, rate, epochs=FEW_EPOCHS, is_repaired=is_repaired)
        for rate, teacher, is_repaired in itertools.product(
            RATES, ("labels", BEST_TEACHER), (False, True)
        )
    ]


def arms_at_the_low_rate():
    return [Run("ekg", teacher, 0, 0.3) for teacher in ("labels", "bank", "single")]


def arms_of_repair():
    return [
        Run("ekg", teacher, 0, rate, is_repaired=True)
        for rate in RATES
        for teacher in ("labels", BEST_TEACHER)
    ]


def arms_of_peers():
    """Returns the other ways to the same rates, with the weapons of ours."""
    torch = [
        Run(cut, teacher, 0, rate)
        for cut in PEERS
        for rate in RATES
        for teacher in ("labels", BEST_TEACHER)
    ]
    ours = [Run("params", BEST_TEACHER, 0, rate) for rate in RATES]
    widths = [Run(cut, BEST_TEACHER, 0) for cut in ("uniform", "random")]
    whole = [Run("unpruned", teacher, 0, 1) for teacher in ("labels", BEST_TEACHER)]
    return torch + ours + widths + whole + [Run("published", "bank", 0)]


def arms_of_peers_in_few_epochs():
    """Returns the other programs' cuts with a short training: with labels as they come, and with
    the teacher and the repair of ours.
    """
    return [
        Run(cut, teacher, 0, rate, epochs=FEW_EPOCHS, is_repaired=is_repaired)
        for rate in RATES
        for cut in PEERS
        for teacher, is_repaired in STARTS
    ]


def arms_of_repaired_peers():
    return [Run(cut, BEST_TEACHER, 0, rate, is_repaired=True) for cut in PEERS for rate in RATES]


def arms_of_changes():
    """Returns the arms with one change of the recipe, or of D_val, each against the memory bank."""
    changed = [Run("ekg", "bank", 0, change=change) for change in CHANGES if change]
    return changed + [Run(cut, "bank", 0) for cut in ("viewed", "unseen")]


def runs_of_resnet56():
    """Returns the runs from the shared weights on all images, one seed."""
    arms = [("ekg", "labels"), ("ekg", "bank"), ("ekg", "single"), ("group-taylor", "single")]
    return [
        Run(cut, teacher, 0, epochs=EPOCHS_OF_RESNET56, arch="ResNet-56") for cut, teacher in arms
    ]


def queue():
    """Returns all runs in the order in which they are made."""
    return [
        *with_seeds(FIRST_SEEDS, *arms_of_teachers()),
        *with_seeds(SEEDS, *arms_of_few_epochs(), *arms_of_peers_in_few_epochs()),
        *with_seeds(LAST_SEEDS, *arms_of_teachers()),
        *with_seeds(SEEDS, *arms_at_the_low_rate()),
        *with_seeds(SEEDS, *arms_of_repair()),
        *with_seeds(SEEDS, *arms_of_peers()),
        *with_seeds(SEEDS, *arms_of_repaired_peers()),
        *with_seeds(SEEDS, *arms_of_changes()),
        *runs_of_resnet56(),
    ]

"""All figures that the paper reports: Lee and Song, ECCV 2022 (arXiv 2203.02651).

A figure belongs to one network, data set, search teacher, fine-tuning teacher, criterion and rate,
and is compared with runs of exactly these.
"""

import dataclasses

C10, C100, ILSVRC = "CIFAR10", "CIFAR100", "ILSVRC2012"


@dataclasses.dataclass(frozen=True)
class Figures:
    """The paper's figures for one pruned network; None where the paper has no figure.

    Attributes:
        arch: name of the network.
        dataset: name of the data set.
        search_teacher: teacher of the search.
        finetune_teacher: teacher of fine-tuning.
        criterion: criterion that ranked the channels.
        rate: share of the FLOPs that is kept.
        top1: top-1 accuracy in %.
        deviation: standard deviation of top1 in %.
        top5: top-5 accuracy in %.
        val_loss: validation loss after the search, in nats.
        condition: condition number after the search.
    """

    arch: str
    dataset: str
    search_teacher: str
    finetune_teacher: str
    criterion: str
    rate: float
    top1: float
    deviation: float | None = None
    top5: float | None = None
    val_loss: float | None = None
    condition: float | None = None

    @property
    def key(self):
        return (
            self.arch,
            self.dataset,
            self.search_teacher,
            self.finetune_teacher,
            self.criterion,
            _percent(self.rate),
        )


def _percent(rate):
    """Returns a rate in whole percent, since the achieved rate differs slightly from the target."""
    return round(100 * rate)


# About 55 % of the FLOPs are removed from the networks for CIFAR.
FIGURES = (
    Figures("ResNet-56", C10, "none", "none", "ekg", 0.45, 93.78, 0.07),
    Figures("ResNet-56", C10, "single", "none", "ekg", 0.45, 93.54, 0.09),
    Figures(
        "ResNet-56",
        C10,
        "ensemble",
        "none",
        "ekg",
        0.45,
        93.85,
        0.10,
        val_loss=0.0713,
        condition=0.0211,
    ),
    Figures("ResNet-56", C10, "ensemble", "single", "ekg", 0.45, 94.02, 0.08),
    Figures("ResNet-56", C10, "ensemble", "ensemble", "ekg", 0.45, 94.09, 0.07),
    Figures("ResNet-56", C100, "none", "none", "ekg", 0.45, 71.63, 0.21),
    Figures("ResNet-56", C100, "single", "none", "ekg", 0.45, 71.66, 0.17),
    Figures(
        "ResNet-56",
        C100,
        "ensemble",
        "none",
        "ekg",
        0.45,
        71.82,
        0.20,
        val_loss=0.7733,
        condition=0.0649,
    ),
    Figures("ResNet-56", C100, "ensemble", "single", "ekg", 0.45, 72.62, 0.15),
    Figures("ResNet-56", C100, "ensemble", "ensemble", "ekg", 0.45, 72.93, 0.16),
    Figures("MobileNet-v2", C10, "none", "none", "ekg", 0.45, 93.69, 0.06),
    Figures("MobileNet-v2", C10, "single", "none", "ekg", 0.45, 93.73, 0.04),
    Figures("MobileNet-v2", C10, "ensemble", "none", "ekg", 0.45, 93.89, 0.04),
    Figures("MobileNet-v2", C10, "ensemble", "single", "ekg", 0.45, 94.44, 0.09),
    Figures("MobileNet-v2", C10, "ensemble", "ensemble", "ekg", 0.45, 94.52, 0.05),
    Figures("MobileNet-v2", C100, "none", "none", "ekg", 0.45, 74.27, 0.18),
    Figures("MobileNet-v2", C100, "single", "none", "ekg", 0.45, 74.10, 0.12),
    Figures("MobileNet-v2", C100, "ensemble", "none", "ekg", 0.45, 74.53, 0.16),
    Figures("MobileNet-v2", C100, "ensemble", "single", "ekg", 0.45, 76.11, 0.15),
    Figures("MobileNet-v2", C100, "ensemble", "ensemble", "ekg", 0.45, 76.29, 0.17),
    # Other criteria
    Figures(
        "ResNet-56", C10, "ensemble", "none", "l1", 0.45, 93.57, val_loss=0.1569, condition=0.4078
    ),
    Figures(
        "ResNet-56", C10, "ensemble", "none", "fpgm", 0.45, 93.57, val_loss=0.1066, condition=0.1461
    ),
    Figures(
        "ResNet-56", C10, "ensemble", "none", "gbn", 0.45, 93.70, val_loss=0.0710, condition=0.0414
    ),
    Figures(
        "ResNet-56", C100, "ensemble", "none", "l1", 0.45, 71.43, val_loss=1.2050, condition=0.2535
    ),
    Figures(
        "ResNet-56",
        C100,
        "ensemble",
        "none",
        "fpgm",
        0.45,
        71.60,
        val_loss=0.7635,
        condition=0.0838,
    ),
    Figures(
        "ResNet-56", C100, "ensemble", "none", "gbn", 0.45, 71.60, val_loss=0.6816, condition=0.0747
    ),
    # ImageNet
    Figures("ResNet-18", ILSVRC, "ensemble", "ensemble", "ekg", 0.499, 69.39, top5=88.65),
    Figures("ResNet-34", ILSVRC, "ensemble", "ensemble", "ekg", 0.549, 73.51, top5=91.27),
    Figures("ResNet-50", ILSVRC, "ensemble", "ensemble", "ekg", 0.55, 76.43, top5=93.13),
    Figures("ResNet-50", ILSVRC, "ensemble", "ensemble", "ekg", 0.45, 75.93, top5=92.82),
    Figures(
        "ResNet-50 of BYOL", ILSVRC, "ensemble", "ensemble", "ekg", 0.45, 76.60, top5=93.23
    ),  # a name no run has
)
BY_KEY = {figures.key: figures for figures in FIGURES}

# (search teacher, fine-tuning teacher) in the order of the paper's ablation
TEACHERS = (
    ("none", "none"),
    ("single", "none"),
    ("ensemble", "none"),
    ("ensemble", "single"),
    ("ensemble", "ensemble"),
)

# Top-1 in % of the unpruned networks
BASELINES = {
    ("ResNet-56", C10): 93.84,
    ("ResNet-56", C100): 72.62,
    ("MobileNet-v2", C10): 94.21,
    ("MobileNet-v2", C100): 76.07,
}

# GPU hours on CIFAR: of the baseline, and {teachers: (hours of search, hours of fine-tuning)}
BASELINE_HOURS = {"ResNet-56": 0.44, "MobileNet-v2": 1.83}
HOURS = {
    "ResNet-56": dict(
        zip(TEACHERS, ((0.19, 0.50), (0.21, 0.50), (0.21, 0.50), (0.22, 0.88), (0.22, 0.68)))
    ),
    "MobileNet-v2": dict(
        zip(TEACHERS, ((0.31, 1.35), (0.35, 1.35), (0.35, 1.35), (0.38, 2.36), (0.38, 1.64)))
    ),
}
RESNET50_HOURS = 315  # total on ImageNet

# Correlations with the loss after fine-tuning, over random sub-networks
CORRELATION = {"subnetworks": 50, "val_loss": 0.32, "condition": 0.73}


def find(arguments):
    """Returns the Figures for a run with these arguments (of its arguments.json), or None."""
    names = ("arch", "dataset", "search_teacher", "finetune_teacher", "criterion")
    values = [arguments[name] for name in names]
    return BY_KEY.get((*values, _percent(arguments["target_rate"])))

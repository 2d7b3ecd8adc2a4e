"""The settings of a job that a Python program asks for: its own choices, and defaults that suit its
data.
"""

import dataclasses
import logging

import numpy as np

from ekg.devices import kind
from ekg.distil import losses
from ekg.errors import EkgError
from ekg.run.folder import PHASE_FILES
from ekg.searching.targets import read_targets
from ekg.settings import (
    SEARCH,
    SUBSET_PER_CLASS,
    FineTuneSettings,
    JobSettings,
    RunSettings,
    SearchSettings,
    SlimSettings,
    SubsetSettings,
    names_where,
)
from ekg.train.optimizers import Recipe

logger = logging.getLogger(__name__)

_SUBSET = names_where([SubsetSettings], lambda details: True)
MANY_CLASSES, MANY_CLASSES_TEMPERATURE = 1000, 10.0  # Lee and Song 2022, ImageNet


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a program asks for besides network and data; see ekg.prune.

    Attributes:
        target_rate: share of the FLOPs to keep, or None.
        target: see targets.read_targets, or None.
        epochs: of fine-tuning; None stands for none.
        seed: of the job.
        search: {name: value} of SearchSettings and SubsetSettings.
        bank: {"num_teacher": K}; False for no memory bank; None for defaults.
        fine_tune: {name: value} of FineTuneSettings.
        run: {name: value} of RunSettings.
        repair: whether the network that is cut out is repaired.
    """

    target_rate: float | None
    target: object
    epochs: int | None
    seed: int
    search: dict | None = None
    bank: dict | bool | None = None
    fine_tune: dict | None = None
    run: dict | None = None
    repair: bool = True


def make_settings(choices, data, num_outputs, replicas):
    """Returns the JobSettings of a job.

    Args:
        choices: Choices.
        data: data set with strata and training images.
        num_outputs: numbers that the network returns for an example, at its largest output.
        replicas: devices that share a batch.

    Raises:
        EkgError: a name is unknown, a value is wrong, one has no effect with the others, or a batch
            cannot be shared out.
    """
    search, run = (
        _given("search", choices.search),
        {"seed": choices.seed, **_given("run", choices.run)},
    )
    tuning = _tuning(choices, num_outputs, data.task.has_labels)
    if data.changes_labels and choices.epochs is not None:
        tuning = _with_teacher_of_views(tuning, data, choices.bank)
    recipe, tuning = Recipe.take(tuning)
    subset = {name: search.pop(name) for name in list(search) if name in _SUBSET}
    if {"target_rate", "target_params", "target"} & set(search):
        raise EkgError(
            "`search`: the target is given as `target_rate` or `target` of its own; leave it out "
            "here."
        )
    if "seed" in _given("run", choices.run):
        raise EkgError("`run`: the seed is given as `seed` of its own; leave it out here.")
    run_settings = RunSettings.make({"val_batch_size": _multiple(256, replicas), **run})
    check_precision(run_settings)
    accum, largest, number = run_settings.accum, data.largest_class(), len(data.train)
    subset = SubsetSettings.make({"subset_per_class": min(SUBSET_PER_CLASS, largest), **subset})
    in_subset = data.num_of_each_class(subset.subset_per_class)
    search = {
        "val_per_class": min(SearchSettings.val_per_class, largest),
        "search_batch_size": _multiple(min(SearchSettings.search_batch_size, in_subset), accum),
        **search,
    }
    tuning = {
        "batch_size": _multiple(min(FineTuneSettings.batch_size, number), replicas * accum),
        **tuning,
    }
    targets = _targets(choices)
    own = targets.pop("target", None)
    fine_tuning = FineTuneSettings.make(tuning)
    fine_tuning = dataclasses.replace(fine_tuning, num_views=fine_tuning.views_of(data))
    made = JobSettings(
        subset,
        SearchSettings.make({**targets, **search}),
        fine_tuning,
        run_settings,
        SlimSettings(choices.repair),
        fine_tunes=choices.epochs is not None,
        writes_page=False,
        hands_out_better=choices.epochs is not None,
        target=own,
        recipe=recipe,
    )
    check_batch(
        "batch_size",
        made.fine_tuning.batch_size,
        {"devices": replicas, "micro-batches (`accum`)": accum},
    )
    check_batch(
        "search_batch_size", made.search.search_batch_size, {"micro-batches (`accum`)": accum}
    )
    check_batch("val_batch_size", run_settings.val_batch_size, {"devices": replicas})
    return made


def _targets(choices):
    """Returns {name: value} of SearchSettings, and "target" where there is one of the user's
    own.
    """
    if choices.target is None:
        return {"target_rate": 0.5 if choices.target_rate is None else choices.target_rate}
    if choices.target_rate is not None:
        raise EkgError(
            '`target_rate` and `target` exclude each other: write `target`={"flops": ...}.'
        )
    return read_targets(choices.target)


def _given(name, values):
    if values is not None and not isinstance(values, dict):
        raise EkgError(
            f"`{name}` must be a dict of settings, {{name: value}}; received {values!r}."
        )
    return dict(values or {})


def _tuning(choices, num_outputs, has_labels):
    """Returns {name: value} of FineTuneSettings.

    Where an output has no labels the unpruned network teaches it on each view, unless more is said.
    """
    tuning = _given("fine_tune", choices.fine_tune)
    if "train_epoch" in tuning:
        raise EkgError("`fine_tune`: its length is given as `epochs`; leave train_epoch out here.")
    if choices.epochs is None:
        searched = names_where([FineTuneSettings], lambda details: details.affects == SEARCH)
        has_no_effect = [name for name in tuning if name not in searched] or ["bank"] * bool(
            choices.bank
        )
        if has_no_effect:
            raise EkgError(
                f"`{has_no_effect[0]}` has no effect here: `epochs` is None, so nothing is "
                f"fine-tuned; leave it "
                "out."
            )
        return tuning
    tuning["train_epoch"] = choices.epochs
    if choices.bank is False:
        tuning.setdefault("finetune_teacher", "none" if has_labels else "single")
        if tuning["finetune_teacher"] == "ensemble":
            raise EkgError(
                '`bank`=False and the finetune_teacher "ensemble" exclude each other: the bank is '
                "what it "
                "knows."
            )
    else:
        bank = _given("bank", None if choices.bank is True else choices.bank)
        unknown = sorted(set(bank) - {"num_teacher"})
        if unknown:
            raise EkgError(f"`bank`: `{unknown[0]}` is no setting here; there is num_teacher.")
        tuning |= bank
        if not has_labels and not choices.bank:
            tuning.setdefault("finetune_teacher", "single")
    distils = tuning.get("finetune_teacher", FineTuneSettings.finetune_teacher) != "none"
    if distils and num_outputs >= MANY_CLASSES:
        tuning.setdefault("temperature", MANY_CLASSES_TEMPERATURE)
    return tuning


def _with_teacher_of_views(tuning, data, bank):
    """Returns {name: value} of FineTuneSettings where views change labels: the bank cannot know
    them.
    """
    asked = tuning.get("finetune_teacher", "ensemble" if bank else None)
    losses.check_teacher(data, asked)
    if asked is None:
        logger.info(
            "`augment` returns labels, which no memory bank can know: the unpruned network "
            "teaches each view"
        )
    return {"finetune_teacher": "single", **tuning}


def _multiple(number, of):
    """Returns the largest multiple that is no larger than a number, but at least one of them."""
    return max(number // of, 1) * of


def check_precision(settings):
    """Raises EkgError if this machine cannot compute in the formats that RunSettings ask for."""
    for name in ("precision", "search_precision"):
        if getattr(settings, name) == "float16" and not kind.has_float16():
            raise EkgError(f"`{name}` float16: needs a GPU; on a CPU take bfloat16 or float32.")


def check_batch(name, batch_size, parts):
    """Raises EkgError if a batch cannot be split evenly.

    Args:
        name: setting of the batch.
        batch_size: images.
        parts: {what the batch is split into: number}.
    """
    count = int(np.prod(list(parts.values())))
    if batch_size % count:
        product = " x ".join(f"{number} {what}" for what, number in parts.items())
        raise EkgError(f"`{name}` {batch_size} must be a multiple of {count} = {product}.")


def check_restart(restart, run_dir):
    """Raises EkgError unless `restart` names a phase of a run in a folder that is kept, or is
    None.
    """
    phases = [phase for phase in PHASE_FILES if phase != "baseline"]
    if restart is not None and restart not in phases:
        raise EkgError(f"`restart` must be one of {phases}; received {restart!r}.")
    if restart is not None and run_dir is None:
        raise EkgError(
            "`restart` has no effect here: without `run_dir` nothing is kept; leave it out."
        )

"""Makes the settings of a job that a program asks for, with defaults that suit its data.

Flags take their defaults from the fields of the settings: see settings.py in this package and in
ekg.searching and ekg.distil. Here are the few that depend on the data.
"""

import dataclasses
import logging

from ekg.distil import losses
from ekg.distil.settings import FineTuneSettings, SlimSettings
from ekg.errors import EkgError
from ekg.run.check import check_devices
from ekg.run.folder import PHASES
from ekg.run.settings import JobSettings, RunSettings
from ekg.searching.settings import SUBSET_PER_CLASS, SearchSettings, SubsetSettings
from ekg.searching.targets import read_targets
from ekg.settings import SEARCH, names_where
from ekg.train.optimizers import Recipe

logger = logging.getLogger(__name__)

# What ekg.prune has arguments of its own for.
GIVEN_APART = ("target_rate", "target_params", "train_epoch", "seed")
_SUBSET = names_where([SubsetSettings], lambda details: True)
MANY_CLASSES, MANY_CLASSES_TEMPERATURE = 1000, 10.0  # Lee and Song 2022, ImageNet


def make_settings(
    data,
    num_outputs,
    replicas,
    *,
    target_rate=None,
    target=None,
    epochs=None,
    seed=0,
    search=None,
    bank=None,
    fine_tune=None,
    run=None,
    repair=True,
):
    """Returns the JobSettings that a program asks for, with defaults that suit its data.

    Args:
        data: data set with strata and training images.
        num_outputs: numbers that the network returns for an example, at its largest output.
        replicas: devices that share a batch.
        target_rate, target, epochs, seed, search, bank, fine_tune, run, repair: see ekg.prune.

    Raises:
        EkgError: a name is unknown, a value is wrong, one has no effect with the others, or a batch
            cannot be shared out.
    """
    if epochs is None and isinstance(fine_tune, FineTuneSettings):
        fine_tune = fine_tune.differing()  # most of it has no effect
    search = _given("search", search, SearchSettings, SubsetSettings)
    run = _given("run", run, RunSettings)
    tuning = _tuning(
        _given("fine_tune", fine_tune, FineTuneSettings),
        bank,
        epochs,
        num_outputs,
        data.task.has_labels,
    )
    if data.changes_labels and epochs is not None:
        tuning = _with_teacher_of_views(tuning, data, bank)
    recipe, tuning = Recipe.take(tuning)
    subset = {name: search.pop(name) for name in list(search) if name in _SUBSET}
    if {"target_rate", "target_params", "target"} & set(search):
        raise EkgError(
            "`search`: the target is given as `target_rate` or `target` of its own; leave it out "
            "here."
        )
    if "seed" in run:
        raise EkgError("`run`: the seed is given as `seed` of its own; leave it out here.")
    run_settings = RunSettings.make(
        {"seed": seed, "val_batch_size": _multiple(256, replicas), **run}
    )
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
    targets = _targets(target_rate, target)
    own = targets.pop("target", None)
    fine_tuning = FineTuneSettings.make(tuning)
    fine_tuning = dataclasses.replace(fine_tuning, num_views=fine_tuning.views_of(data))
    made = JobSettings(
        subset,
        SearchSettings.make({**targets, **search}),
        fine_tuning,
        run_settings,
        SlimSettings(repair),
        fine_tunes=epochs is not None,
        writes_page=False,
        hands_out_better=epochs is not None,
        target=own,
        recipe=recipe,
    )
    check_devices(made, replicas)
    return made


def _targets(target_rate, target):
    """Returns {name: value} of SearchSettings, and "target" where there is one of the user's
    own.
    """
    if target is None:
        return {"target_rate": 0.5 if target_rate is None else target_rate}
    if target_rate is not None:
        raise EkgError(
            '`target_rate` and `target` exclude each other: write `target`={"flops": ...}.'
        )
    return read_targets(target)


def _given(name, values, *classes):
    """Returns {name of a setting: value} of what a program gave.

    Args:
        name: of the argument.
        values: dict, a Settings object, all values of which count, or None.
        classes: that the object may be of.
    """
    if isinstance(values, classes):
        return {
            field.name: getattr(values, field.name)
            for field in dataclasses.fields(values)
            if field.name not in GIVEN_APART or getattr(values, field.name) != field.default
        }
    if values is not None and not isinstance(values, dict):
        objects = "".join(f", or {cls.__name__}" for cls in classes)
        raise EkgError(
            f"`{name}` must be a dict of settings, {{name: value}}{objects}; received {values!r}."
        )
    return dict(values or {})


def _tuning(tuning, bank, epochs, num_outputs, has_labels):
    """Returns {name: value} of FineTuneSettings.

    Where an output has no labels the unpruned network teaches it on each view, unless more is said.
    """
    if "train_epoch" in tuning:
        raise EkgError("`fine_tune`: its length is given as `epochs`; leave train_epoch out here.")
    if epochs is None:
        has_no_effect = [name for name in tuning if name not in _searched_names()]
        if bank:
            has_no_effect.append("bank")
        if has_no_effect:
            raise EkgError(
                f"`{has_no_effect[0]}` has no effect here: `epochs` is None, so nothing is "
                "fine-tuned; leave it out."
            )
        return tuning
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise EkgError(
            f"`epochs` must be a whole number of at least 1, or None; received {epochs!r}."
        )
    tuning = {**tuning, "train_epoch": epochs}
    if bank is False:
        tuning.setdefault("finetune_teacher", "none" if has_labels else "single")
        if tuning["finetune_teacher"] == "ensemble":
            raise EkgError(
                '`bank`=False and the finetune_teacher "ensemble" exclude each other: the bank '
                "is what it knows."
            )
    else:
        given = _given("bank", None if bank is True else bank)
        unknown = sorted(set(given) - {"num_teacher"})
        if unknown:
            raise EkgError(f"`bank`: `{unknown[0]}` is no setting here; there is num_teacher.")
        tuning |= given
        if not has_labels and not bank:
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


def searched_part(fine_tune):
    """Returns {name: value} of those settings of fine-tuning that a search depends on.

    Args:
        fine_tune: see ekg.prune.
    """
    if isinstance(fine_tune, FineTuneSettings):
        fine_tune = fine_tune.differing()
    given = _given("fine_tune", fine_tune)
    return {name: value for name, value in given.items() if name in _searched_names()}


def without_extras(run):
    """Returns {name: value} of RunSettings without latencies and exported files.

    Args:
        run: see ekg.prune.
    """
    return {**_given("run", run, RunSettings), "runtimes": (), "exports": ()}


def _searched_names():
    return names_where([FineTuneSettings], lambda details: details.affects == SEARCH)


def _multiple(number, of):
    """Returns the largest multiple that is no larger than a number, but at least one of them."""
    return max(number // of, 1) * of


def check_restart(restart, run_dir):
    """Raises EkgError unless `restart` names a phase of a run in a folder that is kept, or is
    None.
    """
    phases = [phase for phase in PHASES if phase != "baseline"]
    if restart is not None and restart not in phases:
        raise EkgError(f"`restart` must be one of {phases}; received {restart!r}.")
    if restart is not None and run_dir is None:
        raise EkgError(
            "`restart` has no effect here: without `run_dir` nothing is kept; leave it out."
        )

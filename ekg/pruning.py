"""Prunes a user's own network on the user's own data: the whole job in one call."""

import contextlib
import dataclasses
import hashlib
import logging
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.data.dataset import LabelledData
from ekg.data.examples import draw_for_export
from ekg.data.inputs import described
from ekg.data.own import make_data
from ekg.deploy.formats import runtime_named
from ekg.deploy.write import Export, export
from ekg.devices import kind
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.goal import SEARCH_FOLDER, check_alone, check_folder, folder_of, reach, read_goal
from ekg.graph import cutting
from ekg.graph.calls import Graph
from ekg.graph.complexity import model_complexity
from ekg.graph.heads import without_heads
from ekg.graph.limits import PruningLimits
from ekg.io.files import check_paths
from ekg.latency.tile_width import find_multiple
from ekg.latency.timing import Conditions
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.process import stopping
from ekg.process.progress import shown
from ekg.report import page
from ekg.report.measure import image_shape
from ekg.report.page import FinishedRun
from ekg.report.table import LATENCY_NOTE, Row, format_table, notes
from ekg.run import defaults
from ekg.run import folder as names
from ekg.run.arguments import model_fingerprint
from ekg.run.check import check_batches
from ekg.run.choice import Choice
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.reporting import measured_shape
from ekg.run.run import Opening, start
from ekg.run.settings import RunSettings
from ekg.searching.history import HistoryEntry
from ekg.searching.latency import Latency
from ekg.searching.settings import SearchSettings
from ekg.searching.targets import Target
from ekg.tasks.kinds import TASKS
from ekg.tasks.metrics import metric_named
from ekg.tasks.output_choice import check_all_count

logger = logging.getLogger(__name__)

EXPORT_EXAMPLES = 256
AUTO = "auto"
# What a search does not depend on, besides settings of the training.
TRAINING_ARGUMENTS = ("augment", "epochs", "optimizer", "schedule", "weight_decay")
_KNOWN_TASKS = tuple(kind() for kind in TASKS.values())
NO_VALIDATION = (
    "the figures are of training images that the search evaluated on: no `validation_data` was "
    "given"
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PruneResult:
    """What pruning leaves.

    Attributes:
        model: the pruned network, a plain keras.Model: where fine-tuning made it worse, as it was
            before.
        subnetwork: the Subnetwork Θ* that was found.
        history: tuple of HistoryEntry, from Θ₀ to Θ*.
        table: list of table.Row: the unpruned network, the one that was cut out, and the fine-tuned
            one.
        note: what the figures of the table are of.
        choice: which network `model` is, that of the last row or that before fine-tuning, and why;
            empty without it.
        run: FinishedRun, all that the run folder holds besides networks.
        is_repaired: whether the network that was cut out was repaired, where that helped.
    """

    model: keras.Model
    subnetwork: Subnetwork
    history: tuple[HistoryEntry, ...]
    table: list[Row]
    note: str
    choice: str
    run: FinishedRun
    is_repaired: bool
    _data: LabelledData

    def __repr__(self) -> str:
        metric = metric_named(self.run.metric)
        before, after = (
            metric.text(row.metrics[self.run.metric]) for row in (self.table[0], self.run.result)
        )
        return (
            f"PruneResult({self.model.name}: {self.rate:.1%} of the FLOPs, {metric.title} {before} "
            f"-> {after}, {len(self.history) - 1} search steps)"
        )

    def _repr_html_(self) -> str:
        """Returns the table of the networks, as notebooks show it."""
        return page.table_html(*page.networks_table(self.table))

    @property
    def rate(self) -> float:
        """Share of the FLOPs that is kept."""
        return self.run.rate

    def summary(self) -> str:
        """Returns the final table, and what its figures are of, as text."""
        latencies = LATENCY_NOTE if self.table and self.table[0].latencies else None
        return "\n".join(
            filter(
                None,
                (format_table(self.table), self.note, self.choice, latencies, *notes(self.table)),
            )
        )

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        *,
        quantize: str | None = None,
        examples: Any = None,
        labels: Any = None,
        task: Any = "auto",
        tolerance: float | None = None,
    ) -> Export:
        """Writes the pruned network in a deployment format, proves it, and returns the Export.

            result.export("pruned.tflite", quantize="int8")

        The arguments are those of ekg.export. Without `examples` training images and their labels
        are taken: the networks are compared on them, and for int8 they give the ranges.
        """
        if examples is None and labels is None:
            examples, labels, own = draw_for_export(self._data, EXPORT_EXAMPLES)
            task = task if labels is None else own
        return export(
            self.model,
            path,
            format,
            quantize=quantize,
            examples=examples,
            labels=labels,
            task=task,
            tolerance=tolerance,
        )

    def report(self, folder: str | Path) -> str:
        """Writes report.html and report.png into a folder and returns a line that says what came
        out.

        Args:
            folder: path; it is made if it is not there.

        Raises:
            EkgError: matplotlib is not installed, or the folder cannot be written.
        """
        with page.report_folder(folder) as path:
            return page.write_report(
                self.run, path / names.REPORT_PICTURE, path / names.REPORT_PAGE
            )


def prune(
    model: keras.Model,
    data: Any,
    *,
    target_rate: float | None = None,
    target: dict | Target | None = None,
    validation_data: Any = None,
    task: Any = "auto",
    may_lose: Sequence[str | int] = (),
    exclude: Any = (),
    min_channels: int | dict[str, int] = 1,
    multiple_of: int | dict[str, int] | str = 1,
    prune_frozen: bool = False,
    epochs: int | None = 20,
    search: dict | SearchSettings | None = None,
    repair: bool = True,
    bank: dict | bool | None = None,
    fine_tune: dict | FineTuneSettings | None = None,
    run: dict | RunSettings | None = None,
    augment: str | dict[str, str] | Callable | None = None,
    run_dir: str | Path | None = None,
    restart: str | None = None,
    search_from: str | Path | None = None,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
    verbose: bool = True,
    steps_per_epoch: int | None = None,
    class_weight: dict[int, float] | None = None,
    open_layers: bool | str | Sequence[str] = True,
) -> PruneResult:
    """Prunes a trained network: searches the sub-network, cuts it out and trains it with what the
    interim ones know.

        result = ekg.prune(model, (images, labels), target_rate=0.5)  # a PruneResult
        result.model.save("pruned.keras")

    The network is read, never changed. TensorFlow's deterministic operations are switched on in
    this process, and the seeds of Python, NumPy and TensorFlow are set.

    Args:
        model: trained keras.Model.
        data: training data: a pair (images, labels) of arrays, a tf.data.Dataset or
            keras.utils.PyDataset of such batches that gives the same each time, or an ekg.Data; or
            a data set of this project. Images, or other inputs, as the network takes them: of
            several inputs a dict by their names, or a tuple in their order. Labels as `fit` takes
            them; what has none is held against the unpruned network's output.
        target_rate: share of the FLOPs to keep, in (0, 1]; 0.5 if no `target` is given either.
        target: {"flops": share, "params": share, "latency": ekg.Latency(...)}, any of these, or an
            ekg.Target of your own; or {"drop": 0.01} for the smallest network that loses at most
            one point of the first metric on examples held out of the data, with "held_out",
            "lowest_rate" and "probe_epochs" of goal.GoalSettings.
        validation_data: what the final table is of; None takes training images that the search
            uses.
        task: "auto" decides from output and labels; or a name of tasks.TASKS, a Task, a list or
            dict.
        may_lose: names or numbers of outputs that may be worth nothing afterwards, as ["boxes"].
        exclude, min_channels, multiple_of, prune_frozen, open_layers: see Supernet;
            multiple_of="auto" measures time.
        epochs: of fine-tuning; None ends with the network that was cut out, its moving statistics
            estimated again.
        search: {name: value} of SearchSettings and SubsetSettings, or an object of SearchSettings.
        repair: whether kernels that were cut are fitted to the unpruned network, where that helps;
            see ekg.repair.
        bank: {"num_teacher": K}, or False for no memory bank.
        fine_tune: {name: value} of FineTuneSettings, as learning_rate, batch_size,
            finetune_teacher, temperature; and "optimizer", a keras Optimizer, and "schedule", its
            learning rate; see train.optimizers.Recipe. Or an object of FineTuneSettings.
        run: {name: value} of RunSettings, as precision, accum; or an object of it. All values of
            such objects count; what a dict leaves out suits the data.
        augment: random views in fine-tuning: "flip" or "flip_crop" of all inputs that are images;
            {name of an input: "flip" or "flip_crop"}; or a function, see views.OwnView; None for
            none.
        run_dir: folder that keeps all phases, so that the same call resumes where it was stopped;
            None keeps nothing.
        restart: phase that begins again there, with all later ones: "subset", "search", "slim",
            "bank", "fine-tune".
        search_from: `run_dir` of an earlier run of the same network, data and search: its search is
            taken over, or the first steps of it where the target is another share of FLOPs or
            parameters, and this run goes its own way from there.
        seed: of order, views and choice of images. verbose: whether progress and decisions are
            shown.
        strategy: tf.distribute.Strategy; None takes the first GPU, or the CPU.
        steps_per_epoch: batches that are the data, where it comes in batches; None for all.
        class_weight: {class number: weight} in all losses with labels; None for 1.

    Raises:
        EkgError, FloatingPointError: what cannot be done, before the first phase; a loss or a
            reward is not finite.
        KeyboardInterrupt, SystemExit: Ctrl-C, or SIGTERM and SIGUSR1; with `run_dir` the same call
            resumes there.
    """
    check_paths({"run_dir": run_dir, "search_from": search_from})
    defaults.check_restart(restart, run_dir)
    goal = read_goal(target, target_rate)
    if goal is not None:
        check_alone({"restart": restart, "search_from": search_from})
    limits = {"exclude": exclude, "min_channels": min_channels, "prune_frozen": prune_frozen}
    with contextlib.ExitStack() as stack:
        stack.enter_context(shown(verbose))
        path = stack.enter_context(_folder(run_dir))
        team = stack.enter_context(Team(strategy or _default_strategy()).sharing_failures())
        given = {
            "validation_data": validation_data,
            "augment": augment,
            "steps_per_epoch": steps_per_epoch,
            "class_weight": class_weight,
        }
        data, logits, limits, head = understand(
            model, data, {"task": task, "may_lose": may_lose}, given, limits, open_layers
        )
        pruning = _Pruning(
            logits,
            limits,
            multiple_of,
            head,
            team,
            augment,
            {
                "seed": seed,
                "search": search,
                "bank": bank,
                "fine_tune": fine_tune,
                "run": run,
                "repair": repair,
            },
        )
        if goal is not None:
            return reach(goal, data, epochs, seed, _ForGoal(pruning, path))
        opening = Opening(restart, search_from=None if search_from is None else Path(search_from))
        targets = {"target_rate": target_rate, "target": target, "epochs": epochs}
        return pruning.run(data, path, targets, opening)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Pruning:
    """All that the jobs of one call of prune() have in common.

    Attributes:
        logits: network on logits.
        limits, multiple_of: arguments of its Supernet.
        head: Head that was taken off, or None.
        team: Team.
        augment: see prune().
        options: arguments of defaults.make_settings() besides target and epochs.
    """

    logits: keras.Model
    limits: dict
    multiple_of: int | dict[str, int] | str
    head: object
    team: Team
    augment: object
    options: dict

    def settings(self, data, supernet, targets):
        """Returns the JobSettings for the arguments `target_rate`, `target` and `epochs`."""
        outputs = _num_outputs(data, supernet.graph)
        return defaults.make_settings(data, outputs, self.team.size, **(self.options | targets))

    def supernet(self, target=None, folders=()):
        """Returns (Supernet, {name: value} of what was measured for it); see _find_multiple()."""
        multiple_of, measured = self.multiple_of, {}
        if multiple_of == AUTO:
            whole = Supernet(self.logits, **self.limits)
            multiple_of = _find_multiple(whole, target, self.team, folders)
            measured = {"auto_multiple_of": multiple_of}
        return Supernet(self.logits, multiple_of=multiple_of, **self.limits), measured

    def run(self, data, path, targets, opening, note=None):
        """Runs a job and returns (PruneResult, Job).

        Args:
            data: data set.
            path: of the run folder.
            targets: {name: value} of the arguments of settings(), and others that replace options.
            opening: Opening of the folder.
            note: what the figures of the table are of; None says it by the data.
        """
        source = opening.search_from
        supernet, measured = self.supernet(
            targets.get("target"), [path] if source is None else [path, source]
        )
        job_settings = self.settings(data, supernet, targets)
        data, tested = _with_test_images(data, job_settings)
        compute = Compute(self.team, kind.use_xla(), job_settings.run.precision)
        job = Job(job_settings, data, supernet, compute, RunFolder(path), self.head)
        job, rows = start(
            job,
            _asked(job, targets["epochs"], self.augment) | measured,
            opening=dataclasses.replace(
                opening,
                advice="name a new `run_dir`, which can take its search over with `search_from`",
                search_ignores=TRAINING_ARGUMENTS,
            ),
        )
        return _result(job, rows, note or tested), job


class _ForGoal:
    """What goal.reach() prunes and measures with."""

    def __init__(self, pruning, path):
        """
        Args:
            pruning: _Pruning.
            path: folder of all the run folders.
        """
        check_folder(path)
        self._pruning, self._path = pruning, path
        folders = [folder_of(path, SEARCH_FOLDER)]
        self._supernet, _ = pruning.supernet(None, folders)

    def check(self, data, epochs):
        """Raises EkgError if a setting is wrong for a run of so many epochs."""
        targets = {"target_rate": 1.0, "epochs": epochs}
        check_batches(self._pruning.settings(data, self._supernet, targets), data)

    def least_rate(self):
        """Returns the share of the FLOPs of the smallest sub-network."""
        return self._supernet.rate(self._supernet.smallest())

    def unpruned(self, measure):
        """Returns what a function says of the unpruned network, as the chief sees it."""
        return self._pruning.team.from_chief(lambda: measure(self._pruning.logits))

    def prune(self, name, data, rate, epochs, search_from, note, is_final):
        """See goal.reach()."""
        targets = {"target_rate": rate, "epochs": epochs}
        options = self._pruning.options
        if epochs is None:
            targets |= {"fine_tune": defaults.searched_part(options["fine_tune"]), "bank": None}
        if not is_final:
            targets["run"] = defaults.without_extras(options["run"])
        source = None if search_from is None else folder_of(self._path, search_from)
        with _folder(folder_of(self._path, name)) as path:
            opening = Opening(search_from=source)
            result, job = self._pruning.run(data, path, targets, opening, note)

        def measured(measure):
            network = path / job.handed_out[0]
            return job.team.from_chief(lambda: measure(job.read(network, result.subnetwork)))

        return result, measured


@contextlib.contextmanager
def _folder(run_dir):
    """Gives the path of the folder of a job: `run_dir`, or a temporary one for None.

    Signals stop a job whose folder is kept where nothing is lost. It ends by what Python raises for
    them, and says where.
    """
    if run_dir is None:
        with tempfile.TemporaryDirectory(prefix="ekg-") as path:
            yield Path(path)
        return
    try:
        with stopping.handled():
            yield Path(run_dir)
    except stopping.Stopped as stop:
        ending = stopping.ended(stop.signal, RunFolder(run_dir).describe_progress())
        logger.warning("%s", ending)
        raise ending from None


def _find_multiple(supernet, target, team, folders):
    """Returns the multiple of channels that the runtime likes, measured by the chief.

    A run that resumes, or takes a search over, keeps what was measured first.

    Args:
        supernet: the Supernet.
        target: see prune().
        team: Team.
        folders: paths of the run folder and of the one whose search is taken over.
    """

    def find():
        for folder in map(RunFolder, folders):
            known = folder.arguments().get("auto_multiple_of") if folder.holds_run() else None
            if known is not None:
                return known
        targets = target.values() if isinstance(target, dict) else [target]
        conditions = next(
            (part.conditions for part in targets if isinstance(part, Latency)), Conditions("litert")
        )
        multiple = find_multiple(
            supernet, runtime_named(conditions.runtime), conditions.batch, conditions.num_threads
        )
        logger.info(
            "multiples of %d channels stay: that is where the time of %s jumps",
            multiple,
            conditions,
        )
        return multiple

    return team.from_chief(find)


def _num_outputs(data, graph):
    """Returns the numbers that the network returns for an example, at its largest output."""
    return max(math.prod(graph.shapes[number][1:]) for number in data.task.tensors(graph))


def _default_strategy():
    return tf.distribute.OneDeviceStrategy(kind.default_device())


def understand(model, data, meant, given, limits, open_layers):
    """Returns (data set, network on logits, arguments of its Supernet, Head or None).

    Args:
        model: keras.Model.
        data: see prune().
        meant: what the outputs are for, and `given`: further arguments of make_data().
        limits: arguments of Supernet.
        open_layers: which layers are opened.
    """
    if not isinstance(model, keras.Model):
        raise EkgError(f"`model` must be a keras.Model; received {type(model).__name__}.")
    _check_weights(model)
    original, model = model, cutting.open_model(model, open_layers=open_layers)
    if isinstance(data, LabelledData):
        for name, value in given.items():
            if value is not None:
                raise EkgError(
                    f"`{name}` has no effect here: the data set has its own; leave it out."
                )
    else:
        data = make_data(model, data, **meant, **given)
    _warn_of_own_training(original)
    chosen, size = data.task, data.image_shape
    check_all_count(model, chosen, meant["may_lose"])
    kept = PruningLimits(**limits).excluded(Graph(original, size, open_layers))
    logits, head = without_heads(cutting.open_model(model, size, open_layers), chosen.logits, size)
    graph = Graph(logits, size)
    chosen.check_network(graph)
    # By name, as what is pruned is a copy: layers and functions of layers speak of the user's own
    # network.
    excluded = [f"^{re.escape(key)}$" for key in sorted(kept) if key in graph.layers]
    if head is not None:
        logger.info(
            "%r (%s) is taken off for the work on logits, and put back after it",
            head.name,
            head.squash,
        )
    limits = {
        **limits,
        "exclude": excluded,
        "class_logits": chosen.has_class_logits,
        "input_shape": size,
        "open_layers": False,  # what can be opened is open by now
    }
    return data, logits, limits, head


def _check_weights(model):
    """Raises EkgError if a weight of the given network is NaN or infinite."""
    for variable in model.weights:
        if "float" in str(variable.dtype):
            is_finite = np.isfinite(keras.ops.convert_to_numpy(variable)).all()
            if not is_finite:
                raise EkgError(
                    f"`model` {model.name!r}: its weight {variable.path!r} holds NaN or infinite "
                    "numbers; train it again, or load an earlier state."
                )


def _warn_of_own_training(model):
    """Warns of a model that says itself how it is trained, which no phase asks."""
    own = [
        name
        for name in ("train_step", "compute_loss")
        for kind in type(model).__mro__
        if name in vars(kind) and not kind.__module__.startswith("keras.")
    ]
    if own:
        logger.warning(
            "`model` %r (%s) has a %s() of its own, which training here does not call: the "
            "task's loss and `model.losses` are minimised.",
            model.name,
            type(model).__name__,
            own[0],
        )


def _with_test_images(data, settings):
    """Returns (data set with images for the final table, what these are)."""
    if data.test is not None:
        return data, f"measured on {len(data.test)} validation examples"
    drawn = data.last_of_each_class(settings.search.val_per_class, settings.run.seed)
    return dataclasses.replace(data, test=drawn), NO_VALIDATION


def _asked(job, epochs, augment):
    """Returns {name: value} of what the result depends on besides settings; see start().

    Args:
        job: Job.
        epochs, augment: see prune().
    """
    task, recipe = job.data.task, job.settings.recipe
    asked = {
        "target": job.settings.target,
        "augment": augment,
        "task": task.name if task in _KNOWN_TASKS else task,
        "schedule": recipe.schedule,
        "epochs": epochs,
        "arch": job.model.name,
        "dataset": job.data.name,
        "outputs": list(task.outputs),
        "groups": _hash_groups(job.supernet),
        "model": model_fingerprint(job.model),
    }
    if recipe.optimizer is not None:
        asked |= {"optimizer": recipe.optimizer, "weight_decay": str(recipe.weight_decay)}
    return asked


def _hash_groups(supernet):
    """Returns a hash of the channel groups and of what may go of each."""
    groups = [(group.name, group.size, group.least, group.multiple) for group in supernet.groups]
    return hashlib.sha256(repr(groups).encode()).hexdigest()


def _result(job, rows, note):
    folder = job.folder
    run = folder.read_finished()
    found = run.history[-1].subnetwork
    model = job.finished(folder / job.handed_out[0], found)
    return PruneResult(
        model,
        found,
        tuple(run.history),
        rows,
        f"{note}; {_error_note(rows)}{_size_note(job, found)}",
        "" if run.choice is None else str(Choice(**run.choice)),
        run,
        job.settings.slim.repair,
        job.data,
    )


def _error_note(rows):
    return f"± is one standard error of the mean over {rows[0].examples} examples"


def _size_note(job, found):
    """Returns the size that FLOPs are counted for where the network leaves it open, and the rate at
    the size of the test images where that is another one; else an empty text.
    """
    supernet, tested = job.supernet, image_shape(job.test_batches)
    searched = measured_shape(job)
    sizes = described(searched), described(tested)
    if tested == searched:
        is_open = any(None in symbol.shape[1:] for symbol in supernet.model.inputs)
        return f"\nFLOPs and latencies are of {sizes[0]}, the size of the data" if is_open else ""
    whole, cut = (
        model_complexity(model, tested).flops for model in (supernet.model, supernet.cut(found))
    )
    return (
        f"\nFLOPs and latencies are of {sizes[0]}, as in the search; at {sizes[1]}, what the rest "
        f"is of, the rate is {cut / whole:.4f}"
    )

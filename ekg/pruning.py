"""Prunes a user's own network on the user's own data: the whole job in one call."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import re
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

from ekg import settings
from ekg.data.dataset import LabelledData
from ekg.data.examples import draw_labelled
from ekg.data.own import make_data
from ekg.deploy.formats import runtime_named
from ekg.deploy.write import export
from ekg.devices import kind
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.graph.calls import Graph
from ekg.graph.complexity import model_complexity
from ekg.graph.heads import without_heads
from ekg.graph.limits import PruningLimits
from ekg.latency.tile_width import find_multiple
from ekg.latency.timing import Conditions
from ekg.process import stopping
from ekg.process.progress import shown
from ekg.report import page
from ekg.report.measure import image_shape
from ekg.report.page import FinishedRun
from ekg.report.table import LATENCY_NOTE, format_table
from ekg.run import arguments, pipeline, plan, precision
from ekg.run import folder as names
from ekg.run.choice import Choice
from ekg.run.comparing import describe
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.networks import Networks
from ekg.searching.latency import Latency
from ekg.tasks.kinds import TASKS
from ekg.tasks.output_choice import check_all_count

logger = logging.getLogger(__name__)

EXPORT_EXAMPLES = 256
AUTO = "auto"
_KNOWN_TASKS = tuple(kind() for kind in TASKS.values())
NO_VALIDATION = (
    "the figures are of training images that the search evaluated on: no `validation_data` was "
    "given"
)


@dataclasses.dataclass(frozen=True, eq=False)
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
    """

    model: keras.Model
    subnetwork: object
    history: tuple
    table: list
    note: str
    choice: str
    _run: FinishedRun = dataclasses.field(repr=False)
    _data: object = dataclasses.field(repr=False)

    @property
    def rate(self):
        """Share of the FLOPs that is kept."""
        return self._run.rate

    def summary(self):
        """Returns the final table, and what its figures are of, as text."""
        latencies = LATENCY_NOTE if self.table and self.table[0].latencies else None
        return "\n".join(
            filter(None, (format_table(self.table), self.note, self.choice, latencies))
        )

    def export(
        self,
        path,
        format=None,
        *,
        quantize=None,
        examples=None,
        labels=None,
        task="auto",
        tolerance=None,
    ):
        """Writes the pruned network in a deployment format, proves it, and returns the Export.

            result.export("pruned.tflite", quantize="int8")

        The arguments are those of ekg.export. Without `examples` training images and their labels
        are
        taken: the networks are compared on them, and for int8 they give the ranges.
        """
        if examples is None and labels is None:
            examples, labels = draw_labelled(self._data, EXPORT_EXAMPLES)
            if type(self._data.task) in TASKS.values():
                task = self._data.task
            else:  # labels of several outputs, or with weights, or made by the unpruned network
                labels = None
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

    def report(self, folder):
        """Writes report.html and report.png into a folder and returns a line that says what came
        out.

        Args:
            folder: path; it is made if it is not there.

        Raises:
            EkgError: matplotlib is not installed, or the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return page.write_report(
                self._run, folder / names.REPORT_PICTURE, folder / names.REPORT_PAGE
            )
        except ModuleNotFoundError as error:
            raise EkgError(
                f"a report needs {error.name}; install it with: pip install {error.name}"
            ) from None
        except OSError as error:
            raise EkgError(f"{folder}: cannot be written ({error.strerror}).") from None


def prune(
    model,
    data,
    *,
    target_rate=None,
    target=None,
    validation_data=None,
    task="auto",
    may_lose=(),
    exclude=(),
    min_channels=1,
    multiple_of=1,
    prune_frozen=False,
    epochs=20,
    search=None,
    repair=True,
    bank=None,
    fine_tune=None,
    run=None,
    augment=None,
    run_dir=None,
    restart=None,
    seed=0,
    strategy=None,
    verbose=True,
    steps_per_epoch=None,
    class_weight=None,
    open_layers=True,
):
    """Prunes a trained network: searches the sub-network, cuts it out and trains it with what the
    interim ones know.

        result = ekg.prune(model, (images, labels), target_rate=0.5)  # a PruneResult
        result.model.save("pruned.keras")

    The network is read, never changed. TensorFlow's deterministic operations are switched on in
    this process, and the seeds of Python, NumPy and TensorFlow are set.

    Args:
        model: trained keras.Model of one input.
        data: training data: a pair (images, labels) of arrays, a tf.data.Dataset or
            keras.utils.PyDataset of such batches that gives the same each time, or an ekg.Data; or
            a data set of this project. Images as the network takes them. Labels as `fit` takes
            them; what has none is held against the unpruned network's output.
        target_rate: share of the FLOPs to keep, in (0, 1]; 0.5 if no `target` is given either.
        target: {"flops": share, "params": share, "latency": ekg.Latency(...)}, any of these, or an
            ekg.Target of your own.
        validation_data: what the final table is of; None takes training images that the search
            uses.
        task: "auto" decides from output and labels; or a name of tasks.TASKS, a Task, a list or
            dict.
        may_lose: names or numbers of outputs that may be worth nothing afterwards, as ["boxes"].
        exclude, min_channels, multiple_of, prune_frozen, open_layers: see Supernet;
            multiple_of="auto" measures time.
        epochs: of fine-tuning; None ends with the network that was cut out, its moving statistics
            estimated again.
        search: {name: value} of SearchSettings, and those of SubsetSettings.
        repair: whether kernels that were cut are fitted to the unpruned network, where that helps;
            see ekg.repair.
        bank: {"num_teacher": K}, or False for no memory bank.
        fine_tune: {name: value} of FineTuneSettings, as learning_rate, batch_size,
            finetune_teacher, temperature; and "optimizer", a keras Optimizer, and "schedule", its
            learning rate; see train.optimizers.Recipe.
        run: {name: value} of RunSettings, as precision, accum.
        augment: random views in fine-tuning: "flip", "flip_crop", or a function, see views.OwnView;
            None for none.
        run_dir: folder that keeps all phases, so that the same call goes on where it was stopped;
            None keeps nothing.
        restart: phase that begins anew there, with all behind it: "subset", "search", "slim",
            "bank", "fine-tune".
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
    plan.check_restart(restart, run_dir)
    choices = plan.Choices(target_rate, target, epochs, seed, search, bank, fine_tune, run, repair)
    stays = {"exclude": exclude, "min_channels": min_channels, "prune_frozen": prune_frozen}
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
        data, networks = _understand(
            model, data, {"task": task, "may_lose": may_lose}, given, stays, open_layers
        )
        found = (
            {"auto_multiple_of": _find_multiple(networks, target, team, path)}
            if multiple_of == AUTO
            else {}
        )
        networks = networks.with_choices(
            {"multiple_of": found.get("auto_multiple_of", multiple_of)}
        )
        job, note = _make_job(choices, data, networks, team, path)
        made_of, unknown = _arguments(job, epochs, augment, found)
        _check_workers(team, made_of)
        rows = pipeline.run_job(
            job,
            lambda: _prepare(job, made_of, unknown, restart),
            trained_file=job.folder / names.BASELINE,
        )
        return _result(job, rows, note)


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


def _find_multiple(networks, target, team, path):
    """Returns the multiple of channels that the runtime likes, measured by the chief; a run that
    goes on keeps its own.
    """

    def find():
        folder = RunFolder(path)
        known = folder.arguments().get("auto_multiple_of") if folder.holds_run() else None
        if known is not None:
            return known
        given = target.values() if isinstance(target, dict) else [target]
        conditions = next(
            (one.conditions for one in given if isinstance(one, Latency)), Conditions("litert")
        )
        multiple = find_multiple(
            networks.supernet,
            runtime_named(conditions.runtime),
            conditions.batch,
            conditions.num_threads,
        )
        logger.info(
            "multiples of %d channels stay: that is where the time of %s jumps",
            multiple,
            conditions,
        )
        return multiple

    return team.from_chief(find)


def _make_job(choices, data, networks, team, path):
    """Returns (Job, what the figures of its table are of)."""
    graph = networks.supernet.graph
    num_outputs = max(math.prod(graph.shapes[one][1:]) for one in data.task.tensors(graph))
    job_settings = plan.make_settings(choices, data, num_outputs, team.size)
    data, note = _with_test_images(data, job_settings)
    compute = Compute(team, kind.use_xla(), job_settings.run.precision)
    return precision.resolved(Job(job_settings, data, networks, compute, RunFolder(path))), note


def _default_strategy():
    return tf.distribute.OneDeviceStrategy(kind.default_device())


def _understand(model, data, meant, given, supernet_choices, open_layers):
    """Returns (data set, Networks) of what a user gave.

    Args:
        model: keras.Model.
        data: see prune().
        meant: what the outputs are for, and `given`: further arguments of make_data().
        supernet_choices: arguments of Supernet.
        open_layers: which layers are opened.
    """
    if not isinstance(model, keras.Model):
        raise EkgError(f"`model` must be a keras.Model; received {type(model).__name__}.")
    original, model = model, cutting.open_model(model, open_layers=open_layers)
    if isinstance(data, LabelledData):
        for name, value in given.items():
            if value is not None:
                raise EkgError(
                    f"`{name}` has no effect here: the data set has its own; leave it out."
                )
    else:
        data = make_data(model, data, **meant, **given)
    _warn_of_own_training(model)
    chosen, size = data.task, data.image_shape
    check_all_count(model, chosen, meant["may_lose"])
    kept = PruningLimits(**supernet_choices).excluded(Graph(original, size, open_layers))
    logits, head = without_heads(cutting.open_model(model, size, open_layers), chosen.logits, size)
    graph = Graph(logits, size)
    chosen.check_network(graph)
    # By name, as what is pruned is a copy: layers and functions of layers speak of the user's own
    # network.
    supernet_choices["exclude"] = [
        f"^{re.escape(key)}$" for key in sorted(kept) if key in graph.layers
    ]
    if head is not None:
        logger.info(
            "%r (%s) is taken off for the work on logits, and put back behind it",
            head.name,
            head.squash,
        )
    return data, Networks(
        logits,
        {
            **supernet_choices,
            "class_logits": chosen.has_class_logits,
            "input_shape": size,
            "open_layers": False,
        },
        head,
    )  # what can be opened is open by now


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
            "`model` %r (%s) has a %s() of its own, which training here does not call: the task's "
            "loss and "
            "`model.losses` are minimised.",
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


def _arguments(job, epochs, augment, found):
    """Returns (what arguments.json holds: all that the result depends on, what of it cannot be
    compared, in words).

    Args:
        job: Job.
        epochs: see prune.
        augment: see prune.
        found: {name: value} of what was measured for the job.
    """
    chosen = job.settings
    parts = (chosen.subset, chosen.search, chosen.slim, chosen.fine_tuning, chosen.run)
    affecting = settings.names_where(
        map(type, parts), lambda details: details.affects != settings.MACHINE
    )
    given = {
        name: value for part in parts for name, value in vars(part).items() if name in affecting
    }
    task = job.data.task
    values = {
        "target": job.settings.target,
        "augment": augment,
        "task": task.name if task in _KNOWN_TASKS else task,
    }
    recipe = job.settings.recipe
    values |= {
        name: value
        for name, value in vars(recipe).items()
        if recipe.optimizer is not None or name == "schedule"
    }
    described = {
        name: describe(value)
        for name, value in {**given, **values}.items()
        if callable(value) or name in values
    }
    unknown = [f"`{name}` ({what})" for name, one in described.items() for what in one.unknown]
    texts = {
        name: None if (given | values)[name] is None else one.text
        for name, one in described.items()
    }
    groups = [
        (group.name, group.size, group.least, group.multiple)
        for group in job.networks.supernet.groups
    ]
    return {
        **given,
        **texts,
        "epochs": epochs,
        "arch": job.networks.model.name,
        "dataset": job.data.name,
        "outputs": list(job.data.task.outputs),
        "groups": hashlib.sha256(repr(groups).encode()).hexdigest(),
        "model": arguments.model_fingerprint(job.networks.model),
        **arguments.describe(job.data, job.compute.use_xla),
        **found,
    }, unknown


def _check_workers(team, made_of):
    """Raises EkgError if workers were started otherwise, or with another version of the library."""
    code = arguments.hash_code(Path(__file__).parent, ("**/*.py",))
    team.check_same(made_of | {"code": code})


def _prepare(job, made_of, unknown, restart):
    """Makes or opens the run folder, and puts the trained network into it."""
    if unknown and job.folder.holds_run():
        logger.warning(
            "%s: resumes as if nothing had changed in what cannot be compared: %s",
            job.folder.path,
            ", ".join(unknown),
        )
    folder = RunFolder.prepare(
        job.folder.path, json.loads(json.dumps(made_of)), advice="name a new `run_dir`"
    )
    if restart is not None:
        folder.restart(restart)
    if not folder.has(names.BASELINE):
        job.networks.save(job.networks.model, folder / names.BASELINE)


def _result(job, rows, note):
    folder = job.folder
    run = folder.read_finished()
    found = run.history[-1].subnetwork
    model = job.networks.finished(folder / job.handed_out[0], found)
    return PruneResult(
        model,
        found,
        tuple(run.history),
        rows,
        f"{note}; {_error_note(rows)}{_size_note(job, found)}",
        "" if run.choice is None else str(Choice(**run.choice)),
        run,
        job.data,
    )


def _error_note(rows):
    return f"± is one standard error of the mean over {rows[0].examples} examples"


def _size_note(job, found):
    """Returns what the rate is at the size of the test images, where that is not the search's; else
    an empty text.
    """
    supernet, tested = job.networks.supernet, image_shape(job.test_batches)
    searched = supernet.graph.input_shapes[0]
    if tested == searched:
        return ""
    whole, cut = (
        model_complexity(model, tested).flops for model in (supernet.model, supernet.cut(found))
    )
    sizes = ["x".join(map(str, shape)) for shape in (searched, tested)]
    return (
        f"\nFLOPs and latencies are of {sizes[0]}, as in the search; at {sizes[1]}, what the rest "
        f"is of, the rate is "
        f"{cut / whole:.4f}"
    )

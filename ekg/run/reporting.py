"""Measures the networks of a pruning job on the test images and writes its report."""

import dataclasses
import logging

import keras
import numpy as np

from ekg.data.examples import draw_examples, draw_for_export
from ekg.data.inputs import one_or_list
from ekg.deploy.formats import FORMATS, INT8, LITERT
from ekg.deploy.write import MIN_EXAMPLES, export
from ekg.io import files
from ekg.report import page
from ekg.report.measure import measure, warn_of_lagging_statistics, with_latencies
from ekg.report.table import INT8_IMAGES, notes
from ekg.run import folder as names
from ekg.run.arguments import origin
from ekg.run.choice import CUT, TUNED, Choice, count_steps
from ekg.run.phases import write_keras
from ekg.train.evaluate import Evaluation

logger = logging.getLogger(__name__)

EXPORT_EXAMPLES = 64


def report(job, networks, ready=None):
    """Measures the networks, writes summary and report, and returns the rows of the final table.

    Args:
        job: Job.
        networks: {name of the row: (parameter file, Subnetwork that it holds or None for the
            unpruned network)}.
        ready: Evaluation of the unpruned network that a preflight made, or None.
    """
    with job.timed("report"):
        evaluations = Evaluations(job, ready)
        if job.has(names.SUPERNET):  # an old run's table is made again without it
            searched = evaluations.of(job.folder / names.SUPERNET, None)
            warn_of_lagging_statistics(searched, job.val_batches, job.folder.history()[0].accuracy)
        rows = [
            measure(
                name, evaluations.of(path, subnetwork), path.stat().st_size, measured_shape(job)
            )
            for name, (path, subnetwork) in networks.items()
        ]
        rows = _with_exports(job, rows, networks)
        rows = with_latencies(
            rows,
            [evaluations.model_of(subnetwork) for _, subnetwork in networks.values()],
            job.settings.run.runtimes,
            measured_shape(job),
            target=target_conditions(job),
            int8=_int8_files(job, networks),
            use_xla=job.compute.use_xla,
            run_seconds=sum(phase["seconds"] for phase in job.folder.phases().values()),
        )
        for note in notes(rows):
            logger.warning("%s", note)
        choice = _choose(job, networks, evaluations) if job.settings.hands_out_better else None
    job.team.on_chief(lambda: _write(job, rows, choice))
    return rows


def complete(job):
    """Writes again the files of a finished run that its result and its numbers suffice for."""
    folder = job.folder
    for result, keras_file in dict.fromkeys([job.result_names, job.handed_out]):
        if not folder.has(keras_file):
            found = folder.history()[-1].subnetwork
            write_keras(job.finished(folder / result, found), folder, keras_file, result)
    if job.settings.writes_page and not (
        folder.has(names.REPORT_PAGE) and folder.has(names.REPORT_PICTURE)
    ):
        write_page(folder)  # stopped between the two, or removed


class Evaluations:
    """Evaluates the networks in parameter files on the test images.

    Networks of one sub-network differ in their weights alone, so they share a compilation.
    """

    def __init__(self, job, ready=None):
        """
        Args:
            job: Job.
            ready: Evaluation of a copy of the unpruned network, or None.
        """
        self._job = job
        self._known = {} if ready is None else {None: ready}

    def of(self, path, subnetwork):
        """Returns the Evaluation of the network in a file; it counts until the next one of the same
        sub-network is asked for.

        Args:
            path: pathlib.Path of the file.
            subnetwork: Subnetwork that it holds, or None for the unpruned network.
        """
        job = self._job
        if subnetwork in self._known:
            job.load_(self.model_of(subnetwork), path)
        else:
            model = job.load(path, subnetwork)
            self._known[subnetwork] = Evaluation(model, job.test_batches, job.float32_compute)
        return self._known[subnetwork]

    def model_of(self, subnetwork):
        """Returns the keras.Model of a sub-network that was asked for."""
        return self._known[subnetwork].model


def measured_shape(job):
    """Returns the shape of the examples that FLOPs and latencies are given for, of several inputs a
    list: the search's, even where test images have another size.
    """
    return one_or_list(job.supernet.graph.input_shapes)


def target_conditions(job):
    """Returns the Conditions of the latency that the search aims at, or None."""
    return getattr(job.settings.target, "conditions", None)


def export_examples(job):
    """Returns the training examples that exported files are compared on."""
    return draw_examples(job.data, EXPORT_EXAMPLES, job.settings.run.seed)


def export_int8(job, model, path):
    """Writes a network in LiteRT's 8 bits and returns the Export, with the task's metrics on
    INT8_IMAGES test images.

    The ranges of its numbers come from as many training images.
    """
    number = min(max(len(job.data.test), MIN_EXAMPLES), INT8_IMAGES)
    seed = job.settings.run.seed
    training, of_training, task = draw_for_export(job.data, number, seed)
    test, of_test, _ = draw_for_export(job.data, number, seed, job.data.test)
    return export(
        model,
        path,
        LITERT,
        quantize="int8",
        examples=keras.tree.map_structure(_joined, training, test),
        labels=None if of_test is None else _joined(of_training, of_test),
        task=task,
    )


def _joined(*arrays):
    return np.concatenate(arrays)


def _with_exports(job, rows, networks):
    """Returns the rows with the bytes of the exported files; the chief writes them."""
    formats = job.settings.run.exports
    if not formats:
        return rows
    examples = export_examples(job)

    def write(name, path, subnetwork):
        model, sizes, int8 = job.finished(path, subnetwork), {}, {}
        for form in formats:
            if form == INT8:
                exported = export_int8(job, model, _int8_file(job, name))
                int8 = {metric: measured for metric, (_, measured) in exported.metrics.items()}
            else:
                file = job.folder / names.EXPORTED / f"{name}{FORMATS[form].suffix}"
                exported = export(model, file, form, examples=examples)
            logger.info("%s", exported)
            sizes[form] = exported.size
        return {"exports": sizes, "int8": int8}

    written = job.team.from_chief(lambda: [write(name, *entry) for name, entry in networks.items()])
    return [dataclasses.replace(row, **values) for row, values in zip(rows, written)]


def _int8_file(job, name):
    return job.folder / names.EXPORTED / f"{name}.{INT8}{FORMATS[LITERT].suffix}"


def _int8_files(job, networks):
    """Returns the list of the networks' files in 8 bits; empty where there are none, or where
    another process has them.
    """
    if INT8 not in job.settings.run.exports or not job.team.is_chief:
        return []
    return [_int8_file(job, name) for name in networks]


def _choose(job, networks, evaluations):
    """Returns the choice.Choice between the network that was cut out and the fine-tuned one.

    Where it is the former, its .keras file is written.
    """
    cut, tuned = (evaluations.of(*networks[name])(batches=job.val_batches) for name in (CUT, TUNED))
    choice = Choice.between(cut, tuned, count_steps(job.settings, job.data))
    logger.log(logging.INFO if choice.name == TUNED else logging.WARNING, "%s", choice)
    if choice.name == CUT:
        path, subnetwork = networks[CUT]
        job.team.on_chief(
            lambda: write_keras(
                job.finished(path, subnetwork), job.folder, names.SLIMMED_KERAS, path.name
            )
        )
    return choice


def _write(job, rows, choice):
    summary = {
        "table": [dataclasses.asdict(row) for row in rows],
        "phases": job.folder.phases(),
        "origin": origin(),
    }
    if choice is not None:
        summary["choice"] = dataclasses.asdict(choice)
    files.write_json(job.folder / names.SUMMARY, summary)
    if job.settings.writes_page:
        write_page(job.folder)


def write_page(folder):
    """Writes the report of a finished run into its RunFolder."""
    page.write_report(
        folder.read_finished(), folder / names.REPORT_PICTURE, folder / names.REPORT_PAGE
    )

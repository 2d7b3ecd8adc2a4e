"""The last phase of a pruning job: what the networks are worth, measured on the test images, and
the report of it.
"""

import dataclasses
import logging
import tempfile
from pathlib import Path

from ekg.data.examples import draw_examples
from ekg.deploy.formats import FORMATS, runtime_named
from ekg.deploy.write import export
from ekg.devices.compute import Compute
from ekg.io import files
from ekg.report import page
from ekg.report.measure import conditions_for, measure, warn_of_lagging_statistics, with_latencies
from ekg.run import folder as names
from ekg.run.arguments import origin
from ekg.run.choice import CUT, TUNED, Choice, count_steps
from ekg.run.job import Phase
from ekg.run.phases import write_keras
from ekg.train.evaluate import Evaluation

logger = logging.getLogger(__name__)

EXPORT_EXAMPLES = 64


class ReportPhase(Phase):
    """Measures the networks on the test images; writes summary and report."""

    name, leaves = "report", names.SUMMARY

    def rehearse(self, model):
        job, batches = self.job, self.job.test_batches
        self.rehearsed = Evaluation(job.copy(model), batches, self._compute)
        self.rehearsed(batches=batches.head(batches.batch_size))
        for one in self._conditions:
            if one.runtime != "tensorflow":  # an operator may be missing there
                runtime_named(one.runtime).timed(model, one.batch, one.num_threads, self._shape)()
        formats = job.settings.run.exports
        examples = self._export_examples() if formats else None
        with tempfile.TemporaryDirectory(prefix="ekg-") as folder:
            for form in formats:
                export(
                    job.networks.with_head(job.copy(model)),
                    Path(folder) / f"network{FORMATS[form].suffix}",
                    form,
                    examples=examples,
                )

    def run(self, networks):
        """Returns the rows of the final table.

        Args:
            networks: {name of the row: (parameter file, Subnetwork that it holds or None for the
                unpruned network)}.
        """
        job = self.job
        with job.timed(self.name):
            # Networks of one sub-network differ in their weights alone: they share a compilation,
            # and their latency.
            evaluations, self.rehearsed = {None: self.rehearsed} if self.rehearsed else {}, None
            if job.has(names.SUPERNET):  # an old run's table is made again without it
                searched = self._evaluation(job.folder / names.SUPERNET, None, evaluations)
                warn_of_lagging_statistics(
                    searched, job.val_batches, job.folder.history()[0].accuracy
                )
            rows = [
                self._measure(name, path, subnetwork, evaluations)
                for name, (path, subnetwork) in networks.items()
            ]
            rows = self._with_exports(rows, networks)
            rows = with_latencies(
                rows,
                [evaluations[subnetwork].model for _, subnetwork in networks.values()],
                self._conditions,
                self._shape,
                job.compute.use_xla,
                sum(phase["seconds"] for phase in job.folder.phases().values()),
            )
            choice = self._choose(networks, evaluations) if job.settings.hands_out_better else None
        job.team.on_chief(lambda: self._write(rows, choice))
        return rows

    def _choose(self, networks, evaluations):
        """Returns the choice.Choice between the network that was cut out and the fine-tuned one;
        writes the former's file.

        Args:
            networks: see run().
            evaluations: see _evaluation().
        """
        job = self.job
        cut, tuned = (
            self._evaluation(*networks[name], evaluations)(batches=job.val_batches)
            for name in (CUT, TUNED)
        )
        choice = Choice.between(cut, tuned, count_steps(job.settings, job.data))
        logger.log(logging.INFO if choice.name == TUNED else logging.WARNING, "%s", choice)
        path, subnetwork = networks[CUT]
        if choice.name == CUT:
            job.team.on_chief(
                lambda: write_keras(
                    job.networks.finished(path, subnetwork),
                    job.folder,
                    names.SLIMMED_KERAS,
                    path.name,
                )
            )
        return choice

    def _measure(self, name, path, subnetwork, evaluations):
        """Returns the Row of the network in a file, but for latency and exports."""
        return measure(
            name, self._evaluation(path, subnetwork, evaluations), path.stat().st_size, self._shape
        )

    def _evaluation(self, path, subnetwork, evaluations):
        """Returns the Evaluation of the network in a file.

        Args:
            path: pathlib.Path of the file.
            subnetwork: Subnetwork that it holds, or None for the unpruned network.
            evaluations: {Subnetwork or None: Evaluation} of what was measured before; it gets what
                it lacks.
        """
        job = self.job
        if subnetwork in evaluations:
            with job.team.strategy.scope():
                job.networks.load_(evaluations[subnetwork].model, path)
        else:
            evaluations[subnetwork] = Evaluation(
                job.load(path, subnetwork), job.test_batches, self._compute
            )
        return evaluations[subnetwork]

    def _with_exports(self, rows, networks):
        """Returns the rows with the bytes of the exported files; the chief writes them."""
        job, formats = self.job, self.job.settings.run.exports
        if not formats:
            return rows
        examples = self._export_examples()

        def write():
            sizes = []
            for name, (path, subnetwork) in networks.items():
                model = job.networks.finished(path, subnetwork)
                made = [
                    export(
                        model,
                        job.folder / names.EXPORTED / f"{name}{FORMATS[form].suffix}",
                        form,
                        examples=examples,
                    )
                    for form in formats
                ]
                for one in made:
                    logger.info("%s", one)
                sizes.append({one.format: one.size for one in made})
            return sizes

        return [
            dataclasses.replace(row, exports=sizes)
            for row, sizes in zip(rows, job.team.from_chief(write))
        ]

    def _export_examples(self):
        """Returns the training images that exported files are compared on."""
        return draw_examples(self.job.data, EXPORT_EXAMPLES, self.job.settings.run.seed)

    @property
    def _shape(self):
        """Shape of the image that FLOPs and latencies are of: the search's, whatever the size of
        the test images.
        """
        return self.job.networks.supernet.graph.input_shapes[0]

    @property
    def _conditions(self):
        """What the latencies of the table are measured under."""
        target = self.job.settings.target
        return conditions_for(self.job.settings.run.runtimes, getattr(target, "conditions", None))

    @property
    def _compute(self):
        return Compute(self.job.team, self.job.compute.use_xla)  # logits are measured in float32

    def _write(self, rows, choice):
        folder = self.job.folder
        summary = {
            "table": [dataclasses.asdict(row) for row in rows],
            "phases": folder.phases(),
            "origin": origin(),
        }
        summary |= {} if choice is None else {"choice": dataclasses.asdict(choice)}
        files.write_json(folder / names.SUMMARY, summary)
        if self.job.settings.writes_page:
            self.write_page()

    def write_page(self):
        """Writes the report of a finished run."""
        folder = self.job.folder
        page.write_report(
            folder.read_finished(), folder / names.REPORT_PICTURE, folder / names.REPORT_PAGE
        )

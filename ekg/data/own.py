"""A data set made of a user's own examples."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ekg.data.dataset import NUM_VIEWS, LabelledData, Split, prefetched
from ekg.data.labelling import label
from ekg.data.sources import find_examples
from ekg.data.view_checks import check_view
from ekg.data.views import make_view
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.tasks.kinds import Task
from ekg.tasks.output_choice import choose_outputs, labels_by_output
from ekg.tasks.weighted import is_weighted

MEMORY_BUDGET = (
    2**30
)  # bytes of the images that the search evaluates on, which are kept in memory if they are fewer
PROBE = 8  # examples that an augmentation is tried on


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionSplit:
    """Labelled examples that a function reads.

    Attributes:
        function: from numbers of examples, int [number], to what the network takes of these, array
            [number, ...].
        labels: as a task prepares them, [examples, ...].
        rows: number that the function knows each example by, int [examples]; None stands for its
            own number.
    """

    function: Callable
    labels: np.ndarray
    rows: np.ndarray | None = None

    def __repr__(self):
        return f"FunctionSplit({len(self)} examples)"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the examples with these indices, [len(indices), ...]."""
        indices = np.asarray(indices)
        return np.asarray(self.function(indices if self.rows is None else self.rows[indices]))

    def stream(self, index_batches):
        """Yields the examples of each array of indices; a thread reads ahead."""
        return prefetched(map(self.read, index_batches), depth=1)

    def take(self, indices):
        """Returns the FunctionSplit of the examples with these indices, in their order."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return FunctionSplit(self.function, self.labels[indices], rows[indices])

    def in_memory(self):
        """Returns a Split in memory if the examples fit MEMORY_BUDGET, else this split."""
        if not len(self):
            return self
        one = self.read(np.zeros(1, np.int64))
        return (
            Split(self.read(np.arange(len(self))), self.labels)
            if len(self) * one.nbytes <= MEMORY_BUDGET
            else self
        )


@dataclasses.dataclass(frozen=True, eq=False)
class OwnData(LabelledData):
    """A data set made of a user's own examples, which the network takes as they are.

    Attributes:
        name: what to call it.
        train: training split.
        test: split of the final evaluations.
        task: Task that the labels are for.
        dtype: of the network's input.
        image_shape: shape of an example.
        view: as views.make_view() gives, or None for examples as they are.
        output: shape of the network's output for an example.
    """

    name: str
    train: Any
    test: Any
    task: Task
    dtype: str
    image_shape: tuple[int, ...]
    view: Any = None
    output: tuple[int, ...] = ()

    @property
    def num_views(self):
        """Random views of each example in fine-tuning, at most. Without any, one is as good as
        two.
        """
        return 1 if self.view is None else NUM_VIEWS

    @functools.cached_property
    def strata(self):
        """The class of every training example among those that there are, or the part of the data
        that it counts to.
        """
        return np.unique(self.task.strata(self.train.labels), return_inverse=True)[1]

    def normalise(self, images):
        """Returns examples as tensors of the network's input type."""
        return tf.cast(images, self.dtype)

    @property
    def moves_knowledge(self):
        """Whether a view moves what the bank knows of an example as it is."""
        has_places = any(task.places(output) for task, output in self.task.seen_parts(self.output))
        return bool(self.view is not None and self.view.moves_knowledge and has_places)

    @property
    def changes_labels(self):
        """Whether a view changes labels in a way of the user's own, which the bank cannot
        follow.
        """
        return self.view is not None and self.view.changes_labels

    def fine_tune_view(self, batch, number):
        """Returns one fine-tuning view of a batch."""
        images = self.normalise(batch["images"])
        if self.view is None:
            return images
        seen = self.view.images(images, batch.get("labels"), batch["draws"][:, number])
        return tf.cast(seen, self.dtype)

    def fine_tune_labels(self, batch, number):
        """Returns the labels of a fine-tuning view of a batch."""
        if self.view is None:
            return batch["labels"]
        return self.view.labels(
            self.normalise(batch["images"]), batch["labels"], batch["draws"][:, number]
        )

    def fine_tune_knowledge(self, batch, number):
        """Returns the bank's rows of a batch as a fine-tuning view moves them, [batch, K, ...]."""
        return self.view.knowledge(batch["bank"], batch["draws"][:, number])

    def check_view(self):
        """Raises EkgError if the view cannot be made, or does not fit the task; see view_checks."""
        if self.view is not None:
            numbers = np.unique(np.linspace(0, len(self.train) - 1, PROBE).astype(np.int64))
            images = self.normalise(self.train.read(numbers))
            check_view(self.view, images, self.train.labels[numbers], self.task, self.output)


def make_data(
    model,
    data,
    *,
    validation_data=None,
    task="auto",
    augment=None,
    may_lose=(),
    steps_per_epoch=None,
    class_weight=None,
):
    """Returns the data set that search, memory bank and training take, made of whatever `fit`
    takes.

    Args:
        model: the keras.Model that it is for.
        data: see ekg.prune; likewise the others.
        validation_data: or None.
        task: "auto", a name, or a Task, or of several outputs a list or dict of these.
        augment: or None.
        may_lose: names or numbers of outputs that do not count.
        steps_per_epoch: or None.
        class_weight: or None.

    Raises:
        EkgError: data, labels and network do not fit each other.
    """
    graph = Graph(model)
    if len(graph.inputs) != 1:
        raise EkgError(
            f"`model` {model.name!r} takes {len(graph.inputs)} inputs; a network of one input is "
            "needed."
        )
    (number,) = graph.inputs
    given = [(data, "data", steps_per_epoch), (validation_data, "validation_data", None)]
    examples = [
        find_examples(source, graph.shapes[number][1:], name, steps)
        for source, name, steps in given
        if source is not None or name == "data"
    ]
    graph = Graph(model, examples[0].shape)  # the network may leave the size of its images open
    choices, labels = choose_outputs(model, graph, task, examples[0].labels, may_lose)
    sources = [(examples[0], labels, "labels of `data`")]
    for part in examples[1:]:
        sources.append(
            (
                part,
                labels_by_output(part.labels, model, choices, "validation_data"),
                "labels of `validation_data`",
            )
        )
    chosen, labels = label(model, graph, choices, sources, class_weight)
    splits = [FunctionSplit(part.read, own) for part, own in zip(examples, labels)]
    view = make_view(augment, graph, chosen)
    if view is not None and view.changes_labels and is_weighted(chosen):
        raise EkgError(
            "`augment` returns labels, and these carry weights, which it cannot know; leave one "
            "out."
        )
    dataset = OwnData(
        "own data",
        splits[0],
        splits[1] if len(splits) > 1 else None,
        chosen,
        str(graph.dtype(number)),
        examples[0].shape,
        view,
        chosen.shape(graph),
    )
    dataset.check_view()
    return dataset

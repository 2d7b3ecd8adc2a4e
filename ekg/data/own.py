"""Data sets of a user's own examples."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.data.dataset import NUM_VIEWS, LabelledData, Split, prefetched
from ekg.data.inputs import Inputs, num_bytes
from ekg.data.labelling import label
from ekg.data.sources import find_examples
from ekg.data.view_checks import check_view
from ekg.data.views import make_view
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.tasks import compiled_loss
from ekg.tasks.kinds import TASKS, Classification, DenseClassification, Task
from ekg.tasks.labels import SUM_TOLERANCE
from ekg.tasks.logits import squash_of
from ekg.tasks.output_choice import choose_outputs, labels_by_output
from ekg.tasks.weighted import is_weighted

logger = logging.getLogger(__name__)

MEMORY_BUDGET = 2**30  # bytes up to which the search's validation images are kept in memory
PROBE = 8  # examples that an augmentation and the outputs are tried on


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionSplit:
    """Labelled examples that are read by a function.

    Attributes:
        function: takes the numbers of examples, int [n], and returns the network's inputs: an
            array [n, ...], or a structure of such arrays.
        labels: labels as the task prepares them, array [examples, ...].
        rows: number by which the function knows each example, int [examples]; None if these are 0,
            1, 2, ...
    """

    function: Callable
    labels: np.ndarray
    rows: np.ndarray | None = None

    def __repr__(self):
        return f"FunctionSplit({len(self)} examples)"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the inputs of the examples with these indices, [len(indices), ...] each."""
        indices = np.asarray(indices)
        return self.function(indices if self.rows is None else self.rows[indices])

    def stream(self, index_batches):
        """Yields the examples of each array of indices, while a thread reads ahead."""
        return prefetched(map(self.read, index_batches), depth=1)

    def take(self, indices):
        """Returns the FunctionSplit of the examples with these indices, in the indices' order."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return FunctionSplit(self.function, self.labels[indices], rows[indices])

    def in_memory(self):
        """Returns a Split in memory if the examples fit MEMORY_BUDGET, else this split."""
        if not len(self):
            return self
        first_example = self.read(np.zeros(1, np.int64))
        if len(self) * num_bytes(first_example) > MEMORY_BUDGET:
            return self
        return Split(self.read(np.arange(len(self))), self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnData(LabelledData):
    """A data set of a user's own examples, which the network takes as they are.

    Attributes:
        name: name of the data set, as logs and messages use it.
        train: training split.
        test: split for final evaluations.
        task: Task that prepared the labels.
        inputs: inputs.Inputs of the network, at the size of the data.
        view: view from views.make_view(), or None without augmentation.
        output: shape of the network's output for one example.
    """

    name: str
    train: Any
    test: Any
    task: Task
    inputs: Inputs
    view: Any = None
    output: tuple[int, ...] = ()

    @property
    def image_shape(self):
        """Shape of one example, or a list of one shape per input."""
        return self.inputs.shape

    @property
    def num_views(self):
        """Largest number of views per example in fine-tuning: 1 without augmentation."""
        return 1 if self.view is None else NUM_VIEWS

    @functools.cached_property
    def strata(self):
        """The class or stratum of each training example, renumbered without gaps, int [n]."""
        strata = self.task.strata(self.train.labels)
        return np.unique(strata, return_inverse=True)[1]

    def normalise(self, images):
        """Returns inputs as tensors in the number formats of the network."""
        return self.inputs.cast(images)

    @property
    def moves_knowledge(self):
        """Whether a view has to move the memory bank's maps along with the pixels."""
        has_places = any(task.places(output) for task, output in self.task.seen_parts(self.output))
        return bool(self.view is not None and self.view.moves_knowledge and has_places)

    @property
    def changes_labels(self):
        """Whether the user's view changes labels, which a memory bank cannot follow."""
        return self.view is not None and self.view.changes_labels

    def fine_tune_view(self, batch, number):
        """Returns one fine-tuning view of a batch."""
        images = self.normalise(batch["images"])
        if self.view is None:
            return images
        seen = self.view.images(images, batch.get("labels"), batch["draws"][:, number])
        return self.inputs.cast(seen)

    def fine_tune_labels(self, batch, number):
        """Returns the labels of a fine-tuning view of a batch."""
        if self.view is None:
            return batch["labels"]
        return self.view.labels(
            self.normalise(batch["images"]), batch["labels"], batch["draws"][:, number]
        )

    def fine_tune_knowledge(self, batch, number):
        """Returns the memory bank's rows of a batch, moved like the view, [batch, K, ...]."""
        return self.view.knowledge(batch["bank"], batch["draws"][:, number])

    def check_view(self):
        """Raises EkgError if the view fails or does not fit the task; see view_checks."""
        if self.view is not None:
            numbers = np.unique(np.linspace(0, len(self.train) - 1, PROBE).astype(np.int64))
            images = self.normalise(self.train.read(numbers))
            check_view(self.view, images, self.train.labels[numbers], self.task, self.output)


def make_data(
    model: keras.Model,
    data: Any,
    *,
    validation_data: Any = None,
    task: Any = "auto",
    augment: str | dict[str, str] | Callable | None = None,
    may_lose: Sequence[str | int] = (),
    steps_per_epoch: int | None = None,
    class_weight: dict[int, float] | None = None,
) -> LabelledData:
    """Returns the data set for search, memory bank and training, from any data that `fit` takes.

    The arguments are explained in ekg.prune.

    Args:
        model: the keras.Model that the data is for.
        data: training data.
        validation_data: data for final evaluations, or None.
        task: "auto", a name or a Task; or a list or dict of these for several outputs.
        augment: name, names by input, or function of the random views; or None.
        may_lose: names or numbers of outputs that do not count.
        steps_per_epoch: number of batches to take from `data`, or None for all.
        class_weight: {class number: weight}, or None.

    Raises:
        EkgError: data, labels and network do not fit each other.
    """
    graph = Graph(model)
    inputs = Inputs.of(graph)
    train = find_examples(data, inputs, "data", steps_per_epoch)
    validation = None
    if validation_data is not None:
        validation = find_examples(validation_data, inputs, "validation_data")

    # The network may leave the sizes of its inputs open, and the data have some.
    graph = Graph(model, list(train.shapes))
    inputs = Inputs.of(graph)
    choices, train_labels = choose_outputs(model, graph, task, train.labels, may_lose)
    sources = [(train, train_labels, "labels of `data`")]
    if validation is not None:
        test_labels = labels_by_output(validation.labels, model, choices, "validation_data")
        sources.append((validation, test_labels, "labels of `validation_data`"))
    chosen_task, prepared = label(model, graph, choices, sources, class_weight)

    view = make_view(augment, graph, chosen_task)
    if view is not None and view.changes_labels and is_weighted(chosen_task):
        raise EkgError(
            "`augment` returns labels, and these labels carry weights, which it does not get; "
            "leave one of them out."
        )
    test = None
    if validation is not None:
        test = FunctionSplit(validation.read, prepared[1])
    dataset = OwnData(
        name="own data",
        train=FunctionSplit(train.read, prepared[0]),
        test=test,
        task=chosen_task,
        inputs=inputs,
        view=view,
        output=chosen_task.shape(graph),
    )
    dataset.check_view()
    _check_logits(model, graph, choices, dataset)
    return dataset


def _check_logits(model, graph, choices, dataset):
    """Raises EkgError if losses of logits would take an output that holds probabilities.

    A softmax that is the last layer is known and removed; one before other layers is not.

    Args:
        model: keras.Model.
        graph: its graph.calls.Graph.
        choices: list of output_choice.Choice.
        dataset: OwnData.
    """
    unknown = [
        choice
        for choice in choices
        if type(choice.task.unwrapped) in TASKS.values()
        and choice.task.takes_logits
        and squash_of(graph, choice.task.tensor(graph)) is None
    ]
    if not unknown:
        return
    images = dataset.train.read(np.arange(min(PROBE, len(dataset.train))))
    outputs = keras.tree.flatten(model(dataset.normalise(images), training=False))
    for choice in unknown:
        values = np.asarray(tf.cast(outputs[choice.task.output], tf.float32))
        has_classes = isinstance(choice.task.unwrapped, (Classification, DenseClassification))
        if (values < 0).any() or (values > 1).any():
            continue
        if has_classes and np.allclose(values.sum(-1), 1, atol=SUM_TOLERANCE):
            raise EkgError(
                f"`model` {model.name!r}: its output {choice.name!r} holds probabilities of "
                "classes, and its last layer is no softmax that could be taken off; let the "
                "softmax be the last layer or its activation, or let the network return logits."
            )
        loss = compiled_loss.read_loss(model, choice.task.output)
        if not has_classes and not (loss and loss.takes_logits):
            logger.warning(
                "output %r is taken for logits, and all its values lie in [0, 1] here; if they are "
                "probabilities, let the sigmoid be the last layer or its activation",
                choice.name,
            )

"""A data set made of a user's own examples."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ekg import augment
from ekg.data import NUM_VIEWS, LabelledData, Split, prefetched
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.labelling import label
from ekg.output_choice import choose_outputs, labels_by_output
from ekg.sources import find_examples
from ekg.tasks import Task

MEMORY_BUDGET = 2**30  # bytes of the images that the search evaluates on, which are kept in memory if they are fewer
PROBE = 8  # examples that an augmentation is tried on


@dataclasses.dataclass(frozen=True, eq=False)
class FunctionSplit:
    """Labelled examples that a function reads.

    Attributes:
        function: from numbers of examples, int [number], to what the network takes of these, array [number, ...].
        labels: as a task prepares them, [examples, ...].
        rows: number that the function knows each example by, int [examples]; None stands for its own number.
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
        return Split(self.read(np.arange(len(self))), self.labels) if len(self) * one.nbytes <= MEMORY_BUDGET else self


# ---------------------------------------------------------------- views

def _flip(images, draws):
    return tf.where(draws[:, 3, None, None, None] >= 0.5, images[:, :, ::-1], images)


def _flip_and_crop(images, draws):
    return augment.flip_and_crop(images, draws[:, 3], draws[:, 4], draws[:, 5])


VIEWS = {"flip": _flip, "flip_crop": _flip_and_crop}


def make_view(augmentation):
    """Returns a function (examples, draws [batch, augment.NUM_DRAWS]) -> examples from what a user gave; None for None.

    Args:
        augmentation: a name of VIEWS, or a function (images, seed) -> images of TensorFlow operations; the seed is an int32
            tensor [2] for the stateless random operations of TensorFlow, another one for every part of a batch.

    Raises:
        EkgError: it is neither.
    """
    if augmentation is None:
        return None
    if isinstance(augmentation, str) and augmentation in VIEWS:
        return VIEWS[augmentation]
    if not callable(augmentation):
        raise EkgError(f"`augment` must be one of {list(VIEWS)}, a function (images, seed), or None; received "
                       f"{augmentation!r}.")
    converted = tf.function(augmentation)  # it may ask tensors by Python's `if` and `for`, as in a tf.data pipeline
    return lambda images, draws: converted(images, tf.bitcast(draws[0, :2], tf.int32))


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
        view: function (examples, draws) -> examples, or None for examples as they are.
    """
    name: str
    train: Any
    test: Any
    task: Task
    dtype: str
    image_shape: tuple[int, ...]
    view: Callable | None = None

    @property
    def num_views(self):
        """Random views of each example in fine-tuning. Where there are none, one is as good as two."""
        return 1 if self.view is None else NUM_VIEWS

    @functools.cached_property
    def strata(self):
        """The class of every training example among those that there are, or the part of the data that it counts to."""
        return np.unique(self.task.strata(self.train.labels), return_inverse=True)[1]

    def normalise(self, images):
        """Returns examples as tensors of the network's input type."""
        return tf.cast(images, self.dtype)

    def fine_tune_view(self, batch, number):
        """Returns one fine-tuning view of a batch."""
        images = self.normalise(batch["images"])
        return images if self.view is None else tf.cast(self.view(images, batch["draws"][:, number]), self.dtype)

    def check_view(self):
        """Raises EkgError if the view of some examples is not of their shape, or not finite, or cannot be made."""
        if self.view is None:
            return
        images = self.normalise(self.train.read(np.arange(min(PROBE, len(self.train)))))
        draws = tf.constant(np.random.default_rng(0).random((len(images), augment.NUM_DRAWS), np.float32))
        try:
            seen = self.view(images, draws)
        except Exception as error:  # whatever a function of the user's own raises
            raise EkgError(f"`augment` fails on images of shape {tuple(images.shape)}: {' '.join(str(error).split())[:200]}"
                           ) from error
        if tuple(seen.shape) != tuple(images.shape):
            raise EkgError(f"`augment` makes {tuple(seen.shape)} of images of shape {tuple(images.shape)}; it must keep the "
                           "shape.")


def make_data(model, data, *, validation_data=None, task="auto", augment=None, may_lose=()):
    """Returns the data set that search, memory bank and training take, made of whatever `fit` takes.

    Args:
        model: the keras.Model that it is for.
        data: see ekg.prune; likewise the others.
        validation_data: or None.
        task: "auto", a name, or a Task, or of several outputs a list or dict of these.
        augment: or None.
        may_lose: names or numbers of outputs that do not count.

    Raises:
        EkgError: data, labels and network do not fit each other.
    """
    graph = Graph(model)
    if len(graph.inputs) != 1:
        raise EkgError(f"`model` {model.name!r} takes {len(graph.inputs)} inputs; a network of one input is needed.")
    number, = graph.inputs
    given = [(data, "data"), (validation_data, "validation_data")]
    examples = [find_examples(source, graph.shapes[number][1:], name) for source, name in given
                if source is not None or name == "data"]
    graph = Graph(model, examples[0].shape)  # the network may leave the size of its images open
    choices, labels = choose_outputs(model, graph, task, examples[0].labels, may_lose)
    sources = [(examples[0], labels, "labels of `data`")]
    for part in examples[1:]:
        sources.append((part, labels_by_output(part.labels, model, choices, "validation_data"),
                        "labels of `validation_data`"))
    chosen, labels = label(model, graph, choices, sources)
    splits = [FunctionSplit(part.read, own) for part, own in zip(examples, labels)]
    dataset = OwnData("own data", splits[0], splits[1] if len(splits) > 1 else None, chosen, str(graph.dtype(number)),
                      examples[0].shape, make_view(augment))
    dataset.check_view()
    return dataset

"""Random views of a user's own examples, and of the labels and knowledge that move with them.

A view that moves pixels must move maps of labels and of knowledge in the same way: the maps are
moved by the same draws, or the view is refused for the task. Views are keyed: the same seed gives
the same view, no matter what ran before.
"""

import dataclasses
import inspect
from collections.abc import Callable

import keras
import tensorflow as tf

from ekg.data import augment
from ekg.data.inputs import IMAGE_RANKS, one_or_list
from ekg.errors import EkgError
from ekg.tasks.kinds import Regression, Task

VIEWS = ("flip", "flip_crop")
MIXES_AXES = ("Reshape", "Lambda", "Swapaxes", "Moveaxis")  # types of layers and operations
SMALLEST_CROPPED = augment.PADDING + 1  # pixels; smaller images cannot be padded by reflection


@dataclasses.dataclass(frozen=True)
class MovingView:
    """Mirrors images left-right with probability 1/2, may pad and crop them, and moves maps alike.

    Attributes:
        axes: the axes (height, width) of a batch of every input; None for an input that stays.
        crops: whether images are padded by reflection and cropped.
        task: Task, which knows the axes of labels and knowledge that move with the images.
        output: shape of the network's output for one example.
    """

    axes: tuple
    crops: bool
    task: Task
    output: tuple[int, ...]
    moves_knowledge = True
    changes_labels = False

    def images(self, images, labels, draws):
        """Returns the view of inputs [batch, ...] by draws [batch, augment.NUM_DRAWS]."""
        arrays = keras.tree.flatten(images)
        seen = [
            values if axes is None else self._move(values, draws, axes)
            for values, axes in zip(arrays, self.axes)
        ]
        return keras.tree.pack_sequence_as(images, seen)

    def labels(self, images, labels, draws):
        """Returns the labels of the view, [batch, ...]."""
        return self._moved(labels, draws, 1)

    def knowledge(self, rows, draws):
        """Returns the knowledge of the view, given that of the original images, [batch, K, ...]."""
        return self._moved(rows, draws, 2)

    def _moved(self, values, draws, first):
        def move(places, end):
            return self._move(places, draws, (end - 2, end - 1))

        return self.task.moved(values, self.output, first, move)

    def _move(self, values, draws, axes):
        if self.crops:
            return augment.flip_and_crop(values, draws[:, 3], draws[:, 4], draws[:, 5], axes=axes)
        shape = [-1] + [1] * (len(values.shape) - 1)
        is_flipped = tf.reshape(draws[:, 3] >= 0.5, shape)
        return tf.where(is_flipped, tf.reverse(values, [axes[1]]), values)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnView:
    """A user's function (images, seed) -> images, or (images, labels, seed) -> (images, labels).

    For a network of several inputs it takes and returns them in the structure of the network.

    Attributes:
        function: the user's function.
        changes_labels: whether it takes and returns labels.
        channel_axes: channel axis of a batch of every input.
    """

    function: Callable
    changes_labels: bool
    channel_axes: tuple
    moves_knowledge = False

    def __post_init__(self):
        # AutoGraph: the function may use `if` and `for` on tensors, as in a tf.data pipeline.
        object.__setattr__(self, "_converted", tf.function(self.function))

    def images(self, images, labels, draws):
        """Returns the view of images [batch, ...]; see MovingView."""
        return self.both(images, labels, draws)[0]

    def labels(self, images, labels, draws):
        """Returns the labels of the view."""
        return self.both(images, labels, draws)[1]

    def both(self, images, labels, draws, is_traced=True):
        """Returns (images, labels) of the view.

        Args:
            images: inputs of the network, [batch, ...].
            labels: labels as the task prepares them, [batch, ...].
            draws: random numbers in [0, 1), [batch, augment.NUM_DRAWS].
            is_traced: whether to run the traced function, as in training, or the plain one.
        """
        function = self._converted if is_traced else self.function
        seed = tf.bitcast(draws[0, :2], tf.int32)
        if not self.changes_labels:
            return function(images, seed), labels
        pair = function(images, labels, seed)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise EkgError(
                "`augment` takes (images, labels, seed), so it must return a pair (images, "
                f"labels); received {type(pair).__name__}."
            )
        return tuple(pair)


# ---------------------------------------------------------------- construction


def make_view(augmentation, graph, task):
    """Returns the view for a user's `augment` argument: MovingView, OwnView, or None for None.

    Args:
        augmentation: a name of VIEWS, for all inputs that are images or volumes; {name of an input:
            name of VIEWS}; or a function, see OwnView. Its seed is an int32 tensor [2] for
            TensorFlow's stateless random operations, and differs for every part of a batch.
        graph: graph.calls.Graph of the keras.Model, at the size of the images.
        task: Task of the labels.

    Raises:
        EkgError: the argument is neither, or does not fit the images or the task.
    """
    if augmentation is None:
        return None
    if isinstance(augmentation, dict):
        return _moving_view(*_named_inputs(augmentation, graph), graph, task)
    if isinstance(augmentation, str) and augmentation in VIEWS:
        return _moving_view(augmentation, _image_inputs(augmentation, graph), graph, task)
    if not callable(augmentation):
        raise EkgError(
            f"`augment` must be one of {list(VIEWS)}, a function (images, seed) or (images, "
            f"labels, seed), or None; received {augmentation!r}."
        )
    channel_axes = tuple(
        find_channel_axes(graph, number)[-1]
        if len(graph.shapes[number]) in IMAGE_RANKS
        else len(graph.shapes[number]) - 1
        for number in graph.inputs
    )
    changes_labels = _count_required(augmentation) >= 3
    function = task.taking_labels(augmentation) if changes_labels else augmentation
    return OwnView(function, changes_labels, channel_axes)


def _image_inputs(name, graph):
    """Returns the numbers of the inputs that are images or volumes."""
    numbers = [number for number in graph.inputs if len(graph.shapes[number]) in IMAGE_RANKS]
    if not numbers:
        raise EkgError(
            f"`augment` {name!r} moves images and volumes, and the network takes "
            f"{one_or_list(graph.input_shapes)}; give a function (images, seed) -> images."
        )
    return numbers


def _named_inputs(views, graph):
    """Returns (name of a view, numbers of the inputs) of {name of an input: name of a view}."""
    names = graph.input_names
    unknown = [name for name in views if name not in names]
    if unknown or not views:
        raise EkgError(
            f"`augment` names the inputs {sorted(views, key=str)}, and the network takes {names}; "
            "name one or more of these."
        )
    kinds = set(map(str, views.values()))
    if len(kinds) > 1 or not kinds <= set(VIEWS):
        raise EkgError(
            f"`augment` must give all inputs that it names the same one of {list(VIEWS)}; received "
            f"{views!r}."
        )
    (view,) = kinds
    numbers = []
    for name in views:
        number = graph.inputs[names.index(name)]
        if len(graph.shapes[number]) not in IMAGE_RANKS:
            raise EkgError(
                f"`augment` {view!r} moves images and volumes, and input {name!r} has the shape "
                f"{graph.shapes[number][1:]}; name others, or give a function (images, seed) -> "
                "images."
            )
        numbers.append(number)
    return view, numbers


def _count_required(function):
    """Returns the number of required positional arguments of a function; 2 if it is unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        parameter.default is parameter.empty and parameter.kind in positional
        for parameter in parameters
    )


def _moving_view(name, numbers, graph, task):
    """Returns the MovingView of the inputs with these numbers."""
    output = task.shape(graph)
    crops = name == "flip_crop"
    axes = {number: _axes_of(name, number, graph, task, output, crops) for number in numbers}
    return MovingView(tuple(map(axes.get, graph.inputs)), crops, task, output)


def _axes_of(name, number, graph, task, output, crops):
    """Returns the axes (height, width) of an input that a view moves.

    Raises:
        EkgError: it cannot be moved.
    """
    shape = graph.shapes[number]
    channel_axis, *further_axes = find_channel_axes(graph, number)
    if further_axes:
        raise EkgError(
            f"`augment` {name!r}: of the layers of `model` {graph.model.name!r} that read the "
            "images some take them for channels_first and some for channels_last; give a "
            "function (images, seed) -> images."
        )
    spatial_axes = [axis for axis in range(1, len(shape)) if axis != channel_axis]
    sizes = tuple(shape[axis] for axis in spatial_axes)
    if crops and min(sizes[-2:]) < SMALLEST_CROPPED:
        raise EkgError(
            f"`augment` {name!r} needs images of at least {SMALLEST_CROPPED} x {SMALLEST_CROPPED} "
            f"pixels; these have {' x '.join(map(str, sizes))}."
        )
    expected = (0, *spatial_axes, channel_axis)
    axes_of = _map_axes(graph, number)
    problems = [
        _problem(part, part_output, sizes, shape[channel_axis], crops)
        or _layout_problem(axes_of.get(part.tensor(graph), expected), expected, part_output)
        for part, part_output in task.seen_parts(output)
    ]
    for problem in filter(None, problems):
        raise EkgError(
            f"`augment` {name!r} moves what an image shows, and {problem}; give a function "
            "(images, seed) -> images if the labels stay right, or (images, labels, seed) -> "
            "(images, labels)."
        )
    return tuple(spatial_axes[-2:])


def _problem(task, output, sizes, num_channels, crops):
    """Returns why a task's labels cannot be moved with an image of these sizes, or None."""
    places = task.places(output)
    if not places:
        has_numbers = isinstance(task.unwrapped, Regression)
        return "numbers such as positions would not move with it" if has_numbers else None
    if len(places) != len(sizes):
        return f"the positions of an output of shape {output} may not be positions of the image"
    if crops and places != sizes:
        return f"a crop cannot be repeated on maps of {places}, as images have {sizes}"
    if isinstance(task.unwrapped, Regression) and output[-1] not in (1, num_channels):
        return f"{output[-1]} numbers for each place may be directions, which a mirror turns"
    return None


def _layout_problem(axes, expected, output):
    """Returns why maps would be moved along other axes than the image, or None.

    Args:
        axes: axes of the output, as axes of the input.
        expected: the axes of a map with the layout of labels, channels last.
        output: shape of the output for one example.
    """
    if len(output) + 1 != len(expected) or axes == expected:
        return None
    return (
        f"an output of shape {output} has other axes than the image with its channels last (put a "
        "Permute at the end of the network if that is what differs)"
    )


def find_channel_axes(graph, input_number):
    """Returns the axes of a batch of an input that layers read as channels, a list of one or two.

    The layers that read it and have a data format decide, even after a Permute. Without such
    layers, Keras' configuration decides.
    """
    rank = len(graph.shapes[input_number])

    def has_same_axes(call, source):
        return not _data_format(call) and graph.shapes[call.outputs[0]] == graph.shapes[source]

    axes_of = _followed_axes(graph, input_number, has_same_axes)
    channel_axes = set()
    for call in graph.calls:
        source = next((tensor for tensor in call.inputs if tensor in axes_of), None)
        if source is not None and _data_format(call):
            is_first = _data_format(call) == "channels_first"
            channel_axes.add(axes_of[source][1 if is_first else -1])
    default = 1 if keras.config.image_data_format() == "channels_first" else rank - 1
    return sorted(channel_axes) or [default]


def _map_axes(graph, input_number):
    """Returns {tensor number: its axes, as axes of an input}, as far as layers keep axes apart."""

    def keeps_axes(call, source):
        same_rank = len(graph.shapes[call.outputs[0]]) == len(graph.shapes[source])
        return same_rank and type(call.layer).__name__ not in MIXES_AXES

    return _followed_axes(graph, input_number, keeps_axes)


def _followed_axes(graph, input_number, keeps_axes):
    """Returns {tensor number: its axes, as axes of an input}.

    Args:
        graph: graph.calls.Graph.
        input_number: number of the input.
        keeps_axes: function (call, number of the tensor that it reads) that returns whether the
            outputs have the same axes; calls that permute them are known.
    """
    rank = len(graph.shapes[input_number])
    axes_of = {input_number: tuple(range(rank))}
    for call in graph.calls:
        source = next((tensor for tensor in call.inputs if tensor in axes_of), None)
        if source is None:
            continue
        axes = axes_of[source]
        order = _permutation(call.layer, rank)
        if order is not None:
            axes_of[call.output] = tuple(axes[axis] for axis in order)
        elif keeps_axes(call, source):
            axes_of[call.outputs[0]] = axes
    return axes_of


def _data_format(call):
    """Returns the data format of a call's layer, or None."""
    data_format = getattr(call.layer, "data_format", None)
    return data_format if data_format in ("channels_first", "channels_last") else None


def _permutation(operation, rank):
    """Returns the axis order that an operation produces, or None if it does not permute axes."""
    if isinstance(operation, keras.layers.Permute):
        return (0, *operation.dims)
    if type(operation).__name__ == "Transpose":
        axes = getattr(operation, "axes", None)
        return tuple(range(rank))[::-1] if axes is None else tuple(axes)
    return None

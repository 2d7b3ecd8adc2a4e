"""Reads the loss that a network was compiled with, which says what outputs and labels mean."""

import dataclasses

import keras

from ekg.errors import EkgError
from ekg.tasks.output_names import Names

CLASSES = "classes"  # one class of several
LABELS = "labels"  # independent yes-or-no labels
NUMBERS = "numbers"  # regression
KINDS = {  # name of the Keras function -> kind of the loss
    "sparse_categorical_crossentropy": CLASSES,
    "categorical_crossentropy": CLASSES,
    "categorical_focal_crossentropy": CLASSES,
    "kl_divergence": CLASSES,
    "binary_crossentropy": LABELS,
    "binary_focal_crossentropy": LABELS,
    "mean_squared_error": NUMBERS,
    "mean_absolute_error": NUMBERS,
    "mean_absolute_percentage_error": NUMBERS,
    "mean_squared_logarithmic_error": NUMBERS,
    "huber": NUMBERS,
    "log_cosh": NUMBERS,
    "poisson": NUMBERS,
    "cosine_similarity": NUMBERS,
}
PLAIN = (  # losses that equal the loss of a task
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "kl_divergence",
    "binary_crossentropy",
    "mean_squared_error",
)


@dataclasses.dataclass(frozen=True)
class CompiledLoss:
    """A loss from Keras.

    Attributes:
        name: name of its function.
        kind: CLASSES, LABELS or NUMBERS.
        takes_logits: whether it takes logits; otherwise, except for NUMBERS, probabilities.
        ignore_class: class number that the loss ignores, or None.
        label_smoothing: label smoothing, in [0, 1).
        axis: axis of the classes.
        is_changed: whether a class of the user's own computes it in another way.
    """

    name: str
    kind: str
    takes_logits: bool = False
    ignore_class: int | None = None
    label_smoothing: float = 0.0
    axis: int = -1
    is_changed: bool = False

    @property
    def is_plain(self):
        """Whether a task has exactly this loss, and not just one of the same kind."""
        return self.name in PLAIN and not self.label_smoothing and not self.is_changed


def read_loss(model, number=0):
    """Returns the CompiledLoss of an output, or None if there is none or it is not from Keras.

    Args:
        model: keras.Model.
        number: number of the output, in the order in which Keras flattens them.
    """
    loss = _loss_of_output(model, number)
    try:
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:  # a name that is no longer registered
        return None
    function = loss
    options = {}
    is_changed = False
    if isinstance(getattr(loss, "fn", None), type(read_loss)):
        function, options = loss.fn, getattr(loss, "_fn_kwargs", {})
        is_changed = type(loss).call is not keras.losses.MeanSquaredError.call
    name = getattr(function, "__name__", "")
    if name not in KINDS or getattr(keras.losses, name, None) is not function:
        return None
    return CompiledLoss(
        name,
        KINDS[name],
        bool(options.get("from_logits", False)),
        options.get("ignore_class"),
        float(options.get("label_smoothing", 0.0) or 0.0),
        options.get("axis", -1) if KINDS[name] == CLASSES else -1,
        is_changed,
    )


def name_of_unread(model, number=0):
    """Returns the name of an output's compiled loss that read_loss() does not know, or None."""
    loss = _loss_of_output(model, number)
    if loss is None or read_loss(model, number) is not None:
        return None
    return getattr(loss, "__name__", None) or getattr(loss, "name", None) or str(loss)


def has_loss_weights(model):
    """Returns whether a model was compiled with weights of the losses of its outputs."""
    return getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None) is not None


def _loss_of_output(model, number):
    """Returns what compile() was given as the loss of an output, or None."""
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    if not isinstance(loss, (dict, list, tuple)):
        return loss
    try:
        return Names(model).by_place(loss, "loss").get(number)
    except EkgError:  # a nesting that Names does not know
        return None

"""What the loss that a network was compiled with says of its outputs and labels."""

import dataclasses

import keras

from ekg.errors import EkgError
from ekg.tasks.output_names import Names

# Kinds of losses, by the names of Keras' functions
CLASSES, LABELS, NUMBERS = "classes", "labels", "numbers"
KINDS = {
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
PLAIN = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "kl_divergence",
    "binary_crossentropy",
    "mean_squared_error",
)  # what the tasks take


@dataclasses.dataclass(frozen=True)
class CompiledLoss:
    """A loss of Keras' own.

    Attributes:
        name: of its function.
        kind: CLASSES, LABELS or NUMBERS.
        takes_logits: whether it takes logits; else, but for NUMBERS, probabilities.
        ignore_class: class number that counts nothing, or None.
        label_smoothing: share of the labels that it spreads.
    """

    name: str
    kind: str
    takes_logits: bool = False
    ignore_class: int | None = None
    label_smoothing: float = 0.0

    @property
    def is_plain(self):
        """Whether it is what a task takes for it, and not another one of the same kind."""
        return self.name in PLAIN and not self.label_smoothing


def read_loss(model, number=0):
    """Returns the CompiledLoss of an output of a keras.Model, or None: not compiled, or none of
    Keras'.

    Args:
        model: keras.Model.
        number: of the output, as Keras flattens them.
    """
    loss = _loss_of_output(model, number)
    try:
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:  # a name that is registered no more
        return None
    function, options = loss, {}
    if isinstance(getattr(loss, "fn", None), type(read_loss)):
        function, options = loss.fn, getattr(loss, "_fn_kwargs", {})
    name = getattr(function, "__name__", "")
    if name not in KINDS or getattr(keras.losses, name, None) is not function:
        return None
    return CompiledLoss(
        name,
        KINDS[name],
        bool(options.get("from_logits", False)),
        options.get("ignore_class"),
        float(options.get("label_smoothing", 0.0) or 0.0),
    )


def _loss_of_output(model, number):
    """Returns what compile() was given as the loss of an output, or None."""
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    if not isinstance(loss, (dict, list, tuple)):
        return loss
    try:
        return Names(model).by_place(loss, "loss").get(number)
    except EkgError:  # nested otherwise than the outputs are named here
        return None

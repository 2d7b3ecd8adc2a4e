"""The loss as a function of the parameters: gradient, Hessian products, condition number.

The Hessian of the mean cross-entropy is never formed; its products with vectors are exact (reverse
over reverse). The condition number is κ = |λ_min / λ_max| with the algebraically largest and the
smallest eigenvalue (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", who plot that
ratio): 0 is convex-like, smaller is smoother.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.devices.compute import compiled, full_float32
from ekg.errors import EkgError
from ekg.graph.calls import Graph, layer_variables
from ekg.graph.cutting import kernel_norm
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables
from ekg.graph.neighbours import normalised_convolutions
from ekg.graph.registry import fitted_of
from ekg.landscape import lanczos, surfaces
from ekg.landscape.exactness import check_second_derivatives

PARAMETERS = ("kernels", "all")
# The second derivatives of the fused batch norm are slow.
SECOND_ORDER = ExecutionOptions(fuse_norms=False, norms_alone=True)


@dataclasses.dataclass(frozen=True)
class Spectrum(lanczos.Ends):
    """Both ends of a Hessian's spectrum, and the loss that it belongs to.

    Attributes:
        parameters: "kernels" (rank above 1) or "all".
        batch_statistics: whether batch norms took the statistics of the batch, else the moving
            ones.
        num_images: images of the mean loss.
        former_norms: whether kernels that a batch norm follows were rescaled to the norm that they
            had before a cut, as κ depends on their scale.
    """

    parameters: str
    batch_statistics: bool
    num_images: int
    former_norms: bool

    @property
    def condition(self):
        """κ = |λ_min / λ_max|."""
        return abs(self.smallest / self.largest) if self.largest else float("inf")

    def to_json(self):
        """Returns a dict for JSON: everything that is known, and "condition"."""
        return dataclasses.asdict(self) | {"condition": self.condition}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a network, as arrays and as one vector.

    Attributes:
        arrays: list of their values.
        filter_axes: axes of each array whose indices name a filter; see graph.records.Weight.
        support: list of 0/1 arrays of the same shapes: which parameters the network has; None means
            all.
        kind: one of PARAMETERS.
        factors: factor of each array to its norm before a cut, float32; None leaves all as they
            are. See norm_factors().
    """

    arrays: list
    filter_axes: list
    support: list | None
    kind: str
    factors: list | None = None


class Landscape:
    """Mean cross-entropy over fixed images as a function of the parameters of a network.

    Attributes:
        point: the parameters as they are, float32 [dimension]; those outside the network's support
            are zero.
        support: which parameters the network has, float32 [dimension] of zeros and ones.
    """

    def __init__(self, forward, parameters, batches, *, batch_statistics, use_xla=False):
        """
        Args:
            forward: (list of parameter tensors, normalised images) -> logits. Pure.
            parameters: Parameters.
            batches: data.Batches; images of one are run together, and with batch statistics they
                share them.
            batch_statistics: recorded in the Spectrum.
            use_xla: whether to compile with XLA.
        """
        self._shapes = [array.shape for array in parameters.arrays]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._filter_axes, self._kind = parameters.filter_axes, parameters.kind
        self._batches, self._batch_statistics, self._forward = batches, batch_statistics, forward
        self._factors = None
        if parameters.factors is not None:
            self._factors = tf.Variable(np.float32(parameters.factors), trainable=False)
        self.point = self.support = None
        self.move_(parameters.arrays, parameters.support, parameters.factors)
        self._loss = compiled(self._batch_loss, "loss of the landscape", use_xla)
        self._gradient = compiled(self._batch_gradient, "gradient of the landscape", use_xla)
        self._product = compiled(self._batch_product, "Hessian-vector product", use_xla)

    @property
    def dimension(self):
        return len(self.point)

    def move_(self, arrays, support, factors=None):
        """Moves to another network of the same forward function: its point, support and factors.

        Args:
            arrays, support, factors: as of Parameters; factors are given if they were at the start.
        """
        if factors is not None:
            self._factors.assign(factors)
            arrays = [array * factor for array, factor in zip(arrays, factors)]
        self.support = (
            np.ones(sum(self._sizes), np.float32) if support is None else _flatten(support)
        )
        self.point = _flatten(arrays) * self.support

    def loss(self, point):
        """Returns the mean loss at a point, float32 [dimension]."""
        return (
            sum(float(loss) for loss in self._by_batch(self._loss, point))
            / self._batches.num_images
        )

    def gradient(self, point):
        """Returns the gradient of the mean loss at a point, float64 [dimension]."""
        return sum(self._by_batch(self._gradient, point)) / self._batches.num_images

    def product(self, vector, point=None):
        """Returns the product of the Hessian at a point (None: the present one) with a vector,
        float64 [dimension].

        Vectors and products are within the support.
        """
        vector = np.asarray(vector, np.float32) * self.support
        point = self.point if point is None else point
        return (
            sum(self._by_batch(self._product, point, vector))
            / self._batches.num_images
            * self.support
        )

    def spectrum(
        self,
        *,
        tolerance=lanczos.TOLERANCE,
        max_products=lanczos.MAX_PRODUCTS,
        seed=0,
        on_product=None,
    ):
        """Returns the Spectrum; see lanczos.spectrum_ends.

        Args:
            tolerance: both residuals must be within this share of their eigenvalues.
            max_products: products after which it ends, converged or not; the result records which.
            seed: seed of the start vector.
            on_product: function (products made, larger relative residual), or None.
        """
        start = np.random.default_rng(seed).standard_normal(self.dimension) * self.support
        ends = lanczos.spectrum_ends(
            self.product,
            start,
            int(self.support.sum()),
            tolerance=tolerance,
            max_products=max_products,
            on_product=on_product,
        )
        return self.describe(ends)

    def describe(self, ends):
        """Returns the Spectrum with these lanczos.Ends."""
        return Spectrum(
            **dataclasses.asdict(ends),
            parameters=self._kind,
            batch_statistics=self._batch_statistics,
            num_images=self._batches.num_images,
            former_norms=self._factors is not None,
        )

    def directions(self, seed):
        """Returns two random filter-normalised directions, float32 [dimension]; see
        surfaces.normalise_filters.
        """
        rng = np.random.default_rng(seed)
        return [
            np.concatenate(
                [
                    surfaces.normalise_filters(rng.standard_normal(shape), array, axes).ravel()
                    for shape, array, axes in zip(
                        self._shapes, self._cut(self.point), self._filter_axes
                    )
                ]
            ).astype(np.float32)
            * self.support
            for _ in range(2)
        ]

    def _by_batch(self, function, *vectors):
        """Yields the result of a function of the vectors and each batch, float64."""
        vectors = [tf.constant(vector, tf.float32) for vector in vectors]
        for number, images in enumerate(self._batches.images()):
            with full_float32():
                value = function(*vectors, images, self._batches.labels(number))
            yield value.numpy().astype(np.float64)

    def _batch_loss(self, point, images, labels):
        arrays = self._cut(point)
        if self._factors is not None:  # the same network function, with other derivatives
            factors = tf.unstack(self._factors)
            arrays = [array / factor for array, factor in zip(arrays, factors)]
        task, outputs = self._batches.task, self._forward(arrays, self._batches.normalise(images))
        return tf.reduce_sum(task.loss(labels, task.of(outputs)))

    def _batch_gradient(self, point, images, labels):
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = self._batch_loss(point, images, labels)
        return tape.gradient(loss, point)

    def _batch_product(self, point, vector, images, labels):
        """Returns Hv = ∂/∂θ (∂L/∂θ · v)."""
        with tf.GradientTape() as tape:
            tape.watch(point)
            slope = tf.tensordot(self._batch_gradient(point, images, labels), vector, 1)
        return tape.gradient(slope, point)

    def _cut(self, flat):
        """Cuts a vector into arrays of the parameters' shapes."""
        edges = np.cumsum([0, *self._sizes])
        return [
            flat[start:stop].reshape(shape)
            if isinstance(flat, np.ndarray)
            else tf.reshape(flat[start:stop], shape)
            for start, stop, shape in zip(edges, edges[1:], self._shapes)
        ]


def _flatten(arrays):
    return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def model_landscape(
    model, batches, *, parameters="kernels", batch_statistics=False, original=None, use_xla=False
):
    """Returns the Landscape of a stored network.

    Args:
        model: keras.Model; it stays as it is.
        batches: data.Batches.
        parameters: "kernels" or "all".
        batch_statistics: whether batch norms take the statistics of the batch, else the moving
            ones.
        original: keras.Model that it was cut from: kernels that a batch norm follows are rescaled
            to their norms there; None leaves them as they are.
        use_xla: whether to compile with XLA.

    Raises:
        EkgError: parameters is neither, the network returns probabilities, or a layer's second
            derivatives are not exact.
    """
    check_parameters(parameters)
    graph = Graph(model)
    batches.task.check_network(graph)
    batches.task.check_labels(
        batches.split.labels, batches.task.shape(graph), f"labels for {model.name!r}"
    )
    check_second_derivatives(graph, SECOND_ORDER, batch_statistics)
    pure = pure_forward(model, SECOND_ORDER)
    trainable, non_trainable = read_variables(model)
    places = [i for i, value in enumerate(trainable) if parameters == "all" or len(value.shape) > 1]

    def forward(arrays, images):
        values = list(trainable)
        for place, array in zip(places, arrays):
            values[place] = array
        return pure(values, non_trainable, images, batch_statistics)[0]

    axes_of = {
        id(variable): surfaces.filter_axes(layer, variable)
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    axes, factors = [axes_of[id(model.trainable_variables[i])] for i in places], None
    if original is not None:
        wholes = Graph(original).layers

        def kernels_of(call):
            whole, _ = fitted_of(wholes[call.key])
            cut, _ = fitted_of(call.layer)
            return whole.numpy(), cut.numpy()

        by_variable = norm_factors(graph, kernels_of)
        factors = [by_variable.get(id(model.trainable_variables[i]), np.float32(1)) for i in places]
    arrays = [trainable[i].numpy() for i in places]
    return Landscape(
        forward,
        Parameters(arrays, axes, None, parameters, factors),
        batches,
        batch_statistics=batch_statistics,
        use_xla=use_xla,
    )


def norm_factors(graph, kernels_of):
    """Returns {id of a variable: ‖W‖ / ‖V‖, float32} of the convolutions that a batch norm follows.

    With these factors κ is computed at the norms before a cut: the batch norm cancels a factor, so
    the function stays, and its derivatives are divided by the factor. It is 1 where V is all zeros.

    Args:
        graph: graph.calls.Graph.
        kernels_of: (Call) -> (kernel W before the cut, what is left of it, V), arrays.
    """
    factors = {}
    for call in normalised_convolutions(graph):
        size, left = map(kernel_norm, kernels_of(call))
        factor = np.float32(size / left) if left else np.float32(1)
        factors |= {id(variable): factor for variable in layer_variables(call.layer)}
    return factors


def check_parameters(parameters):
    """Raises EkgError if `parameters` is none of PARAMETERS."""
    if parameters not in PARAMETERS:
        raise EkgError(f"`parameters` must be one of {PARAMETERS}; received {parameters!r}.")

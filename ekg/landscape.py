"""The loss landscape of a network: extreme eigenvalues of the Hessian, condition number, surface along random directions.

The Hessian of the mean cross-entropy is never formed; its products with vectors are exact (reverse over reverse). The
condition number is κ = |λ_min / λ_max| with the algebraically largest and the smallest eigenvalue (Li et al. 2018,
"Visualizing the Loss Landscape of Neural Nets", who plot that ratio): 0 is convex-like, smaller is smoother.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

import op_utils
import utils
from ekg import cutting, groups
from ekg.graph import Graph, Numerics

PARAMETERS = ("kernels", "all")
TOLERANCE = 0.05  # of a residual, relative to its eigenvalue; the error of the eigenvalue is of the order of its square
MAX_PRODUCTS = 100


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Both ends of a Hessian's spectrum and how well they are known.

    Attributes:
        largest: the algebraically largest eigenvalue λ_max.
        smallest: the smallest eigenvalue λ_min.
        residual_largest: ‖Hv − λv‖ of the unit vector v of the largest.
        residual_smallest: of the smallest.
        products: Hessian-vector products that were made.
        converged: whether both residuals are within the tolerance.
        parameters: "kernels" (rank above 1) or "all".
        batch_statistics: whether batch norms took the statistics of the batch, else the moving ones.
        num_images: images of the mean loss.
    """
    largest: float
    smallest: float
    residual_largest: float
    residual_smallest: float
    products: int
    converged: bool
    parameters: str
    batch_statistics: bool
    num_images: int

    @property
    def condition(self):
        """κ = |λ_min / λ_max|."""
        return abs(self.smallest / self.largest) if self.largest else float("inf")


class Landscape:
    """Mean cross-entropy over fixed images as a function of the parameters of a network.

    Attributes:
        point: the parameters as they are, float32 [dimension]; those outside the network's support are zero.
        shapes: shapes of the parameter arrays, in order.
    """

    def __init__(self, forward, arrays, support, split, normalise, *, batch_size, parameters, batch_statistics, jit=False):
        """
        Args:
            forward: (list of parameter tensors, normalised images) -> logits. Pure.
            arrays: list of the parameters' values.
            support: list of 0/1 arrays of the same shapes: which of them the network has; None stands for all.
            split: images and labels.
            normalise: uint8 images -> float32 images.
            batch_size: images that are run together, at most; with batch statistics they share them.
            parameters: what `arrays` are, for the record.
            batch_statistics: for the record.
            jit: whether to compile with XLA.
        """
        self.shapes = [array.shape for array in arrays]
        self._sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.support = np.ones(sum(self._sizes), np.float32) if support is None else self._flatten(support)
        self.point = self._flatten(arrays) * self.support
        self._split, self._normalise = split, normalise
        self._batches = [np.arange(start, stop) for start, stop in op_utils.even_batches(len(split), batch_size)]
        self._parameters, self._batch_statistics = parameters, batch_statistics
        self._forward = forward
        self._loss = op_utils.compiled(self._batch_loss, "loss of the landscape", jit)
        self._gradient = op_utils.compiled(self._batch_gradient, "gradient of the landscape", jit)
        self._product = op_utils.compiled(self._batch_product, "Hessian-vector product", jit)

    @property
    def dimension(self):
        return len(self.point)

    def move_(self, arrays, support):
        """Sets the point and the support to those of another network of the same forward function."""
        self.support = self._flatten(support)
        self.point = self._flatten(arrays) * self.support

    def loss(self, point):
        """Returns the mean loss at a point, float32 [dimension]."""
        return sum(float(loss) for loss in self._over_batches(self._loss, point)) / len(self._split)

    def gradient(self, point):
        """Returns the gradient of the mean loss at a point, float64 [dimension]."""
        return self._mean(self._over_batches(self._gradient, point))

    def product(self, vector, point=None):
        """Returns the product of the Hessian at a point (its own one if None) with a vector, float64 [dimension].

        Vectors and products are within the support.
        """
        vector = np.asarray(vector, np.float32) * self.support
        point = self.point if point is None else point
        return self._mean(self._over_batches(self._product, point, vector)) * self.support

    def spectrum(self, *, tolerance=TOLERANCE, max_products=MAX_PRODUCTS, seed=0, on_product=None):
        """Returns the Spectrum by Lanczos' method with full reorthogonalisation.

        Args:
            tolerance: both residuals must be within this share of their eigenvalues.
            max_products: where they are not by then, the result says so.
            seed: of the vector it starts with.
            on_product: function (products made, residuals of both ends relative to their eigenvalues), or None.
        """
        dimension = int(self.support.sum())
        start = np.random.default_rng(seed).standard_normal(self.dimension) * self.support
        basis, diagonal, side = [start / np.linalg.norm(start)], [], []
        while True:
            utils.check_stopped()
            product = self.product(basis[-1])
            diagonal.append(float(basis[-1] @ product))
            for _ in range(2):  # once is not enough in floating point
                for vector in basis:
                    product = product - (vector @ product) * vector
            side.append(float(np.linalg.norm(product)))
            matrix = np.diag(diagonal) + np.diag(side[:-1], 1) + np.diag(side[:-1], -1)
            values, vectors = np.linalg.eigh(matrix)
            residuals = np.abs(side[-1] * vectors[-1, [0, -1]])
            relative = residuals / np.maximum(np.abs(values[[0, -1]]), np.finfo(np.float32).tiny)
            if on_product is not None:
                on_product(len(diagonal), float(relative.max()))
            is_whole = len(diagonal) == dimension or side[-1] <= 1e-7 * np.abs(values).max()
            has_converged = bool((relative <= tolerance).all() or is_whole)
            if has_converged or len(diagonal) == max_products:
                return Spectrum(float(values[-1]), float(values[0]), float(residuals[1]), float(residuals[0]), len(diagonal),
                                has_converged, self._parameters, self._batch_statistics, len(self._split))
            basis.append(product / side[-1])

    def directions(self, seed):
        """Returns two random directions, filter-normalised: each filter has the norm of its filter at the point.

        A filter is one index of a kernel's last axis (of a depthwise kernel: a pair of the last two); arrays of rank one,
        biases and batch norms, stay where they are (Li et al. 2018).
        """
        rng = np.random.default_rng(seed)
        return [np.concatenate([normalise_filters(rng.standard_normal(shape), array).ravel() for shape, array in
                                zip(self.shapes, self._arrays(self.point))]).astype(np.float32) * self.support
                for _ in range(2)]

    def surface(self, directions, steps, on_point=None):
        """Returns the losses on a grid around the point, float64 [len(steps), len(steps)].

        Entry [i, j] is at steps[i] along the first direction and steps[j] along the second.

        Args:
            directions: two vectors, as directions() gives.
            steps: multiples of the directions.
            on_point: function called after every loss, or None.
        """
        losses = np.zeros((len(steps), len(steps)))
        for i, first in enumerate(steps):
            for j, second in enumerate(steps):
                utils.check_stopped()
                losses[i, j] = self.loss((self.point + first * directions[0] + second * directions[1]).astype(np.float32))
                if on_point is not None:
                    on_point()
        return losses

    def _over_batches(self, function, *vectors):
        vectors = [tf.constant(vector, tf.float32) for vector in vectors]
        for indices, images in zip(self._batches, self._split.stream(self._batches)):
            yield function(*vectors, images, self._split.labels[indices]).numpy().astype(np.float64)

    def _mean(self, parts):
        return sum(parts) / len(self._split)

    def _batch_loss(self, point, images, labels):
        logits = self._forward(self._arrays(point), self._normalise(images))
        return tf.reduce_sum(op_utils.cross_entropy(labels, logits))

    def _batch_gradient(self, point, images, labels):
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = self._batch_loss(point, images, labels)
        return tape.gradient(loss, point)

    def _batch_product(self, point, vector, images, labels):
        with tf.GradientTape() as tape:
            tape.watch(point)
            slope = tf.tensordot(self._batch_gradient(point, images, labels), vector, 1)
        return tape.gradient(slope, point)

    def _arrays(self, flat):
        """Cuts a vector into arrays of the parameters' shapes."""
        edges = np.cumsum([0, *self._sizes])
        return [flat[start:stop].reshape(shape) if isinstance(flat, np.ndarray) else tf.reshape(flat[start:stop], shape)
                for start, stop, shape in zip(edges, edges[1:], self.shapes)]

    @staticmethod
    def _flatten(arrays):
        return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def normalise_filters(direction, weights):
    """Returns a direction of which each filter has the norm of the weights' filter; zeros where the rank is one."""
    if weights.ndim < 2:
        return np.zeros_like(weights)
    # A depthwise kernel [kh, kw, c, multiplier] has a filter for each pair of its last axes; there c_in of a filter is one.
    axes = tuple(range(weights.ndim - 2)) if weights.ndim == 4 and weights.shape[-1] == 1 else tuple(range(weights.ndim - 1))
    norms = np.sqrt((weights**2).sum(axis=axes, keepdims=True))
    own = np.sqrt((direction**2).sum(axis=axes, keepdims=True))
    return direction * norms / np.maximum(own, np.finfo(np.float64).tiny)


def of_model(model, split, normalise, *, batch_size, parameters="kernels", batch_statistics=False, jit=False):
    """Returns the Landscape of a stored network.

    Args:
        model: keras.Model; it stays as it is.
        split: images and labels.
        normalise: uint8 images -> float32 images.
        batch_size: images that are run together, at most.
        parameters: "kernels" or "all".
        batch_statistics: whether batch norms take the statistics of the batch, else the moving ones.
        jit: whether to compile with XLA.
    """
    _check_parameters(parameters)
    graph = Graph(model, Numerics(fuse_norms=False))
    trainable, non_trainable = op_utils.read_variables(model)
    places = [i for i, value in enumerate(trainable) if parameters == "all" or len(value.shape) > 1]

    def forward(arrays, images):
        values = list(trainable)
        for place, array in zip(places, arrays):
            values[place] = array
        return graph.stateless_call(values, non_trainable, images, batch_statistics)[0]
    return Landscape(forward, [trainable[i].numpy() for i in places], None, split, normalise, batch_size=batch_size,
                     parameters=parameters, batch_statistics=batch_statistics, jit=jit)


def of_subnetwork(supernet, subnetwork, split, normalise, *, batch_size, parameters="kernels", jit=False):
    """Returns the Landscape of a sub-network of the supernet, masked, with batch statistics.

    Its Hessian is that of the network cut out of it; parameters of channels that are not kept stay zero.
    """
    return MaskedLandscapes(supernet, split, normalise, batch_size=batch_size, parameters=parameters, jit=jit)(subnetwork)


class MaskedLandscapes:
    """Makes the Landscapes of sub-networks of one supernet; all of them share one compiled product."""

    def __init__(self, supernet, split, normalise, *, batch_size, parameters="kernels", jit=False):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            split: images and labels.
            normalise: uint8 images -> float32 images.
            batch_size: images that share batch statistics, at most.
            parameters: "kernels" or "all".
            jit: whether to compile with XLA.
        """
        _check_parameters(parameters)
        self._supernet = supernet.with_numerics(Numerics(fuse_norms=False))
        self._weights = {name: [value.numpy() for value in values] for name, values in supernet.weights().items()}
        self._places = [(layer.name, i) for layer in supernet.model.layers
                        for i, variable in enumerate(layer.trainable_variables)
                        if parameters == "all" or len(variable.shape) > 1]
        self._mask = tf.Variable(supernet.mask(supernet.whole()), trainable=False)
        self._landscape = Landscape(self._forward, [self._weights[name][i] for name, i in self._places], None, split,
                                    normalise, batch_size=batch_size, parameters=parameters, batch_statistics=True, jit=jit)

    def __call__(self, subnetwork):
        """Returns the Landscape of a sub-network; the one before it is of no use any more."""
        mask = self._supernet.mask(subnetwork)
        self._mask.assign(mask)
        support = _support(self._supernet, self._weights, mask)
        weights = dict(self._weights)
        classifier = self._supernet.graph.calls[-1]
        if groups.is_mixing(classifier.layer):  # the parameters are those of the cut network, at the restored norm
            kernel, *others = weights[classifier.layer.name]
            rows = mask[self._supernet.layout.index[classifier.inputs[0]]]
            kernel = kernel * rows[:, None] * cutting.norm_factor(kernel, rows).numpy()
            weights[classifier.layer.name] = [kernel, *others]
        self._landscape.move_([weights[name][i] for name, i in self._places],
                              [support[name][i] for name, i in self._places])
        return self._landscape

    def _forward(self, arrays, images):
        weights = {name: list(values) for name, values in self._weights.items()}
        for (name, i), array in zip(self._places, arrays):
            weights[name][i] = array
        return self._supernet.forward(weights, tf.convert_to_tensor(self._mask), images)


def _support(supernet, weights, mask):
    """Returns {layer name: list of 0/1 arrays}: which weights a network cut out by this mask has."""
    support = {}
    for call in supernet.graph.calls:
        name = call.layer.name
        if name not in weights:
            continue
        reads, writes = (mask[supernet.layout.index[tensor]] for tensor in (call.inputs[0], call.output))
        kernel = weights[name][0]
        if groups.is_mixing(call.layer) and kernel.shape[-2:] == (len(reads), len(writes)):
            first = np.broadcast_to(reads[:, None] * writes, kernel.shape)
        elif type(call.layer) is keras.layers.DepthwiseConv2D:
            first = np.broadcast_to(reads[:, None], kernel.shape)
        else:
            first = np.broadcast_to(writes if kernel.shape == writes.shape else 1.0, kernel.shape)
        support[name] = [first, *(np.broadcast_to(writes if value.shape == writes.shape else 1.0, value.shape)
                                  for value in weights[name][1:])]
    return support


def _check_parameters(parameters):
    if parameters not in PARAMETERS:
        raise ValueError(f"parameters must be one of {PARAMETERS}; received {parameters!r}.")

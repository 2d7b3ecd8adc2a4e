"""Importance of channels: the criteria that rank them.

A criterion is a function (CriterionContext) -> float64 array [num_channels], one score per channel
of all groups, the highest for the most important channel; scores of channels that the sub-network
does not keep are ignored. Built-in criteria are listed in CRITERIA; a search also takes your own
function in place of a name.
"""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np

from ekg.errors import EkgError
from ekg.network import channel_weights
from ekg.network.channel_weights import ChannelWeight
from ekg.network.subnetwork import Subnetwork
from ekg.searching.objective import Objective

NOT_TRAINED = "is this a trained network? If it is, lower `subset_learning_rate`."

MEDIAN_STEPS, MEDIAN_TOLERANCE = 200, 1e-9  # of Weiszfeld's iteration


class CriterionContext:
    """Everything that a criterion can read of the present sub-network, computed on demand.

        def magnitude(context):
            return context.sum_by_channel((kernel.channels, abs(kernel.rows).sum(axis=1)) for kernel
            in context.kernels())

        ekg.search(supernet, data, criterion=magnitude)

    Channels of all groups are numbered consecutively, group after group; see supernet.layout.

    Attributes:
        supernet: the Supernet.
        subnetwork: the present Subnetwork.
        seed: of the search.
    """

    def __init__(self, objective: Objective, subnetwork: Subnetwork, seed: int = 0) -> None:
        """
        Args:
            objective: Objective, which evaluates on D_val.
            subnetwork: the present Subnetwork.
            seed: of the search.
        """
        self.supernet, self.subnetwork, self.seed = objective.supernet, subnetwork, seed
        self._objective = objective

    @property
    def num_channels(self) -> int:
        """Channels of all groups."""
        return self.supernet.layout.num_channels

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Which channels the sub-network keeps, bool [num_channels]."""
        return self._mask[:-1]

    @functools.cached_property
    def _mask(self):
        return self.supernet.mask(self.subnetwork) > 0

    def sum_by_channel(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Returns the sums of scores by channel, float64 [num_channels].

        Args:
            parts: iterable of (numbers of channels, int array [n], which may repeat; their scores,
                array [n]).
        """
        # The last entry sums the channels that are never pruned.
        scores = np.zeros(self.num_channels + 1)
        for channels, values in parts:
            np.add.at(scores, channels, values)
        return scores[:-1]

    # ------------------------------------------ weights; no pass through the network

    def kernels(self) -> list[ChannelWeight]:
        """Returns for every layer that writes a group the kept channels' filters, a list of
        ChannelWeight.

        Filters come without the input channels that the sub-network has lost.
        """
        return self._rows(
            [place for place in self._places if place.is_kernel],
            lambda place: place.variable.numpy(),
        )

    def weights(self) -> list[ChannelWeight]:
        """Returns all weights that kept channels take with them, a list of ChannelWeight.

        Besides the kernels() they are biases, and the weights per channel of the layers between a
        kernel and the gate: scales and offsets of norms, depthwise kernels, slopes.
        """
        return self._rows(self._places, lambda place: place.variable.numpy())

    @functools.cached_property
    def _places(self):
        return channel_weights.find_places(self.supernet)

    def _rows(self, places, values_of):
        rows = (
            channel_weights.rows_of(self.supernet, self._mask, place, values_of(place))
            for place in places
        )
        return [row for row in rows if row is not None]

    # ---------------------------------------------------------------- passes over D_val

    @functools.cached_property
    def gate_products(self) -> list[dict[int, np.ndarray]]:
        """For every batch of D_val {site: |Σ over batch, height, width of (∂L/∂y)·y|, float32
        [channels of the site]}.

        L = −reward and y is the activation after a gate; layout.index[site] numbers the site's
        channels.
        """
        return list(self._objective.gate_products(self.subnetwork))

    @functools.cached_property
    def image_sensitivities(self) -> np.ndarray:
        """Σ over the images of D_val |∂CE/∂m · m| with a gate m on every channel, float64
        [num_channels].
        """
        return self._objective.image_sensitivities(self.subnetwork)

    def weight_gradients(self) -> list[ChannelWeight]:
        """Returns the gradients of the mean loss with the labels over D_val by weights(), in the
        same order and form.
        """
        return self._rows(
            self._places, lambda place: self._gradients[place.call.key, place.position]
        )

    @functools.cached_property
    def _gradients(self):
        return self._objective.weight_gradients(self.subnetwork)


def score_channels(criterion, context):
    """Returns the scores of a criterion, float64 [num_channels]; 0 for channels that are not kept.

    Args:
        criterion: name of CRITERIA, or a function (CriterionContext) -> scores.
        context: CriterionContext.

    Raises:
        EkgError: a function returns no array of numbers of this shape, or one with a kept channel's
            score not finite.
        FloatingPointError: a score of a criterion of CRITERIA is not finite.
    """
    function = CRITERIA[criterion] if isinstance(criterion, str) else criterion
    what = f"`criterion` {getattr(function, '__name__', type(function).__name__)!r}"
    scores, shape = function(context), (context.num_channels,)
    try:
        scores = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise EkgError(
            f"{what} must return an array of numbers of shape {shape}, one score per channel; "
            f"received {type(scores).__name__}."
        ) from None
    if scores.shape != shape:
        raise EkgError(
            f"{what} must return an array of shape {shape}, one score per channel of all groups; "
            f"received shape {scores.shape}."
        )
    scores = np.where(context.mask, scores, 0.0)
    if not np.isfinite(scores).all():
        if function in CRITERIA.values():
            raise FloatingPointError(
                f"the importance of some channels is not finite; {NOT_TRAINED}"
            )
        raise EkgError(
            f"{what} must return finite scores; {np.count_nonzero(~np.isfinite(scores))} scores "
            "of kept channels are not."
        )
    return scores


# ---------------------------------------------------------------- the criteria


def ekg(context):
    """Returns S(c) = Σ over batches of D_val Σ over sites |Σ over batch, height, width of
    (∂L/∂y)·y|.

    L = −reward and y is the activation after a gate (Lee and Song 2022).
    """
    index = context.supernet.layout.index
    return context.sum_by_channel(
        (index[site], product)
        for products in context.gate_products
        for site, product in products.items()
    )


def l1(context):
    """Returns the L1 norm of each channel's filters, summed over the layers that write its group
    (Li et al. 2017).
    """
    return context.sum_by_channel(
        (kernel.channels, np.abs(kernel.rows).sum(axis=1)) for kernel in context.kernels()
    )


def fpgm(context):
    """Returns each filter's distance to the geometric median of its layer's kept filters (He et al.
    2019).

    Summed over the layers that write the group.
    """
    return context.sum_by_channel(
        (kernel.channels, np.linalg.norm(kernel.rows - geometric_median(kernel.rows), axis=1))
        for kernel in context.kernels()
    )


def gbn(context):
    """Returns Σ over the images of D_val |∂CE/∂m · m| with a gate m on every channel (You et al.
    2019).
    """
    return context.image_sensitivities


def taylor(context):
    """Returns (Σ over the weights w of a channel of w·∂CE/∂w)², the group Taylor importance
    (Molchanov et al. 2019).

    CE is the mean loss with the labels over D_val of the present sub-network, with batch
    statistics. The weights of a channel are given by CriterionContext.weights(): filter and bias in
    every layer that writes the group, the scales and offsets of the norms after them, and all other
    weights of the channel up to the gate. A filter alone says nothing where a batch norm follows:
    its factor cancels, so its sum is 0 but for the norm's ε. There the scale and the offset give
    the sum, as in the paper's Taylor-FO-BN.
    """
    return (
        context.sum_by_channel(
            (weight.channels, (weight.rows * gradient.rows).sum(axis=1))
            for weight, gradient in zip(context.weights(), context.weight_gradients())
        )
        ** 2
    )


def random(context):
    """Returns numbers drawn evenly from (0, 1]: the baseline of every comparison.

    They depend on the seed and the channels that the sub-network keeps, and on nothing else.
    """
    drawn_for = hashlib.sha256(np.packbits(context.mask).tobytes()).digest()
    generator = np.random.default_rng([context.seed, int.from_bytes(drawn_for, "little")])
    return np.where(context.mask, 1 - generator.random(context.num_channels), 0.0)


def geometric_median(points):
    """Returns the point whose distances to the points have the smallest sum, by Weiszfeld's
    iteration.

    Args:
        points: [number, dimension].
    """
    median = points.mean(axis=0)
    for _ in range(MEDIAN_STEPS):
        distances = np.maximum(np.linalg.norm(points - median, axis=1), np.finfo(np.float64).eps)
        moved = (points / distances[:, None]).sum(axis=0) / (1 / distances).sum()
        if np.linalg.norm(moved - median) <= MEDIAN_TOLERANCE * np.linalg.norm(moved):
            return moved
        median = moved
    return median


CRITERIA = {criterion.__name__: criterion for criterion in (ekg, l1, fpgm, gbn, taylor, random)}

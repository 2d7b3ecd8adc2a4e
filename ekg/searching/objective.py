"""The objective of the search: the reward of sub-networks on D_val, and the ensemble's knowledge.

reward(Θ) = − CE(labels, Θ) − CE(softmax(T), Θ), with T the mean logits of all interim sub-networks
found so far (Lee and Song 2022); other tasks than classification use their own loss and distance.
Batch norms use batch statistics throughout.
"""

import dataclasses
import math

import numpy as np

from ekg.devices.compute import Compute
from ekg.errors import EkgError
from ekg.graph.execute import ExecutionOptions
from ekg.network import channel_weights
from ekg.searching.evaluator import Evaluator

SEARCH_TEACHERS = ("ensemble", "single", "none")


@dataclasses.dataclass(frozen=True)
class Score:
    """Means over D_val: the loss with the labels, the task's first metric, and the reward.

    For a classification these are the cross-entropy in nats and the accuracy in [0, 1].
    """

    loss: float
    accuracy: float
    reward: float


class Objective:
    """The reward of sub-networks, computed by all members of a team.

    Every member evaluates other candidates on the same batches, and other batches for the
    importance; so the result does not depend on the number of members.

    Attributes:
        supernet: the Supernet, which computes in the chosen dtype.
        evaluators: {member of this process: Evaluator}.
    """

    def __init__(self, supernet, batches, teacher="ensemble", compute=None):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            batches: data.Batches of D_val; images of a batch share batch statistics.
            teacher: "ensemble", "single" or "none": source of the knowledge in the reward.
            compute: Compute; None means float32 on the default device.

        Raises:
            EkgError: teacher is none of these, or the network does not return what the task takes.
        """
        if teacher not in SEARCH_TEACHERS:
            raise EkgError(
                f"`teacher` must be one of {list(SEARCH_TEACHERS)}; received {teacher!r}."
            )
        batches.task.check_network(supernet.graph)
        if supernet.classifier is not None and not batches.task.has_class_logits:
            raise EkgError(
                f"`supernet` takes the output of {supernet.model.name!r} for class logits, and "
                f"the task is a {batches.task.name}; make it by Supernet(model, "
                "class_logits=False)."
            )
        batches.task.check_labels(
            batches.split.labels,
            batches.task.shape(supernet.graph),
            f"labels for {supernet.model.name!r}",
        )
        compute = compute or Compute()
        self._options, self._team = ExecutionOptions(compute.dtype), compute.team
        self.supernet = supernet.with_options(self._options)
        self._use_knowledge, self._batches = teacher != "none", batches
        self.evaluators = self._team.map_members(
            lambda _: Evaluator(self.supernet, batches, teacher, compute.use_xla)
        )

    def start_from(self, supernet, batches):
        """Starts over with the weights of a Supernet of this structure and other batches; see
        Evaluator.start_from.
        """
        self.supernet, self._batches = supernet.with_options(self._options), batches
        self._team.map_members(
            lambda member: self.evaluators[member].start_from(self.supernet, batches)
        )

    @property
    def num_images(self):
        """Images of D_val."""
        return self._batches.num_images

    @property
    def _first(self):
        return next(iter(self.evaluators.values()))

    def scores(self, present, candidates, share_prefix=True):
        """Returns the Score of every candidate; see Evaluator.loss_sums."""
        # Dealt out in the order of their first gates, so that all members have similar work.
        order = sorted(
            range(len(candidates)),
            key=lambda i: -1 if candidates[i][0] is None else candidates[i][0],
        )
        dealt = {member: order[member :: self._team.size] for member in self._team.local_members}
        sums_by_member = self._team.map_members(
            lambda member: self.evaluators[member].loss_sums(
                present, [candidates[i] for i in dealt[member]], share_prefix
            )
        )
        sums = np.zeros((len(candidates), 3))
        for member, values in sums_by_member.items():
            sums[dealt[member]] = values
        return [
            Score(loss, hits, -loss - (soft if self._use_knowledge else 0.0))
            for loss, soft, hits in (self._team.sum_over_workers(sums) / self.num_images).tolist()
        ]

    def logits(self, subnetwork):
        """Returns the logits, or other outputs, of a sub-network: one float32 tensor [batch, ...]
        per batch.
        """
        return self._first.logits(subnetwork)

    def add_knowledge(self, subnetwork):
        """Adds the logits of the next interim sub-network to the knowledge: T ← (T·(i+1) + logits)
        / (i+2).
        """
        self._team.map_members(lambda member: self.evaluators[member].add_knowledge(subnetwork))

    def cache_states(self, subnetwork):
        """Keeps the states that candidates of the present sub-network share, as add_knowledge()
        does; see Evaluator.
        """
        self._team.map_members(lambda member: self.evaluators[member].cache_states(subnetwork))

    @property
    def knowledge(self):
        """The knowledge T of all images of D_val, float32 [images, ...]."""
        return self._first.knowledge

    def restore_knowledge(self, knowledge, num_added):
        """Sets the knowledge of a number of interim sub-networks."""
        self._team.map_members(
            lambda member: self.evaluators[member].restore_knowledge(knowledge, num_added)
        )

    def gate_products(self, subnetwork):
        """Yields for every batch {site: |Σ over batch, height, width of (∂L/∂y)·y|}; see
        Evaluator.gate_products.
        """
        products_by_batch = self._by_batch("gate_products", subnetwork)
        sites, index = self.supernet.layout.sites, self.supernet.layout.index
        edges = np.cumsum([0, *(len(index[site]) for site in sites)])
        table = np.zeros((len(self._batches), edges[-1]), np.float32)
        for number, products in products_by_batch.items():
            table[number] = np.concatenate([products[site] for site in sites])
        for row in self._team.sum_over_workers(table):
            yield {site: row[start:stop] for site, start, stop in zip(sites, edges, edges[1:])}

    def image_sensitivities(self, subnetwork):
        """Returns Σ over all images |∂CE/∂m · m|, float64 [number of channels]; see
        Evaluator.image_sensitivities.
        """
        table = np.zeros((len(self._batches), self.supernet.layout.num_channels))
        for number, sums in self._by_batch("image_sensitivities", subnetwork).items():
            table[number] = sums
        return self._team.sum_over_workers(table).sum(axis=0)

    def weight_gradients(self, subnetwork):
        """Returns the gradients of the mean loss with the labels over D_val by the weights that
        belong to channels.

        They are {(layer key, number of the weight in Supernet.weights()): float64 array of the
        weight's shape}; see channel_weights.find_places. Batches are summed in their own order on
        any number of members.
        """
        places = channel_weights.find_places(self.supernet)
        edges = np.cumsum([0, *(math.prod(place.variable.shape) for place in places)])
        total = np.zeros(edges[-1])
        # As many at once as there are members: the gradients of all batches of a large network
        # would not fit.
        for first in range(0, len(self._batches), self._team.size):
            numbers = range(first, min(first + self._team.size, len(self._batches)))
            table = np.zeros((len(numbers), edges[-1]), np.float32)
            for number, gradient in self._by_batch("weight_gradients", subnetwork, numbers).items():
                table[number - first] = gradient
            for row in self._team.sum_over_workers(table):
                total += row
        total /= self.num_images
        return {
            (place.call.key, place.position): total[start:stop].reshape(place.variable.shape)
            for place, start, stop in zip(places, edges, edges[1:])
        }

    def _by_batch(self, method, subnetwork, numbers=None):
        """Returns {number of a batch: result of the evaluators' method} for the batches of this
        process's members.

        Args:
            method: name of the evaluators' method.
            subnetwork: the Subnetwork.
            numbers: range of the batches; None means all.
        """
        numbers = range(len(self._batches)) if numbers is None else numbers
        dealt = {member: numbers[member :: self._team.size] for member in self._team.local_members}
        results = self._team.map_members(
            lambda member: getattr(self.evaluators[member], method)(subnetwork, dealt[member])
        )
        return {
            number: value for by_number in results.values() for number, value in by_number.items()
        }

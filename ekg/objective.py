"""What the search maximises: the reward of sub-networks on D_val, and the knowledge of the ensemble behind it.

reward(Θ) = − CE(labels, Θ) − CE(softmax(T), Θ), with T the mean logits of all interim sub-networks found so far
(Lee and Song 2022). Batch norms use batch statistics throughout.
"""

import dataclasses

import numpy as np

from ekg.devices import Team
from ekg.evaluator import Evaluator

SEARCH_TEACHERS = ("ensemble", "single", "none")


@dataclasses.dataclass(frozen=True)
class Score:
    """Means over D_val: cross-entropy with the labels (nats), accuracy in [0, 1], and the reward."""
    loss: float
    accuracy: float
    reward: float


class Objective:
    """The reward of sub-networks, found by all members of a team.

    Every member evaluates other candidates on the same batches, and takes other batches for the importance; so the result
    does not depend on how many there are.

    Attributes:
        supernet: the Supernet.
        evaluators: {number of a member of this process: Evaluator}.
    """

    def __init__(self, supernet, split, normalise, *, batch_size, teacher="ensemble", jit=False, team=None):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            split: D_val.
            normalise: uint8 images -> float32 images.
            batch_size: at most so many images share batch statistics.
            teacher: one of SEARCH_TEACHERS.
            jit: whether to compile with XLA.
            team: devices.Team; None stands for the default device.
        """
        if teacher not in SEARCH_TEACHERS:
            raise ValueError(f"teacher must be one of {SEARCH_TEACHERS}; received {teacher!r}.")
        self.supernet, self._team = supernet, team or Team()
        self._use_knowledge, self._num_images = teacher != "none", len(split)
        self.evaluators = self._team.run(lambda _: Evaluator(supernet, split, normalise, batch_size=batch_size,
                                                             teacher=teacher, jit=jit))

    @property
    def labels(self):
        """List of the labels of each batch."""
        return self._first.labels

    @property
    def _first(self):
        return next(iter(self.evaluators.values()))

    def scores(self, present, candidates, share_prefix=True):
        """Returns the Score of every candidate; see Evaluator.sums."""
        # Dealt out in the order of their first gates, so that all members have like work.
        order = sorted(range(len(candidates)), key=lambda i: -1 if candidates[i][0] is None else candidates[i][0])
        own = {number: order[number::self._team.count] for number in self._team.numbers}
        found = self._team.run(lambda number: self.evaluators[number].sums(
            present, [candidates[i] for i in own[number]], share_prefix))
        sums = np.zeros((len(candidates), 3))
        for number, values in found.items():
            sums[own[number]] = values
        return [Score(loss, hits, -loss - (soft if self._use_knowledge else 0.0))
                for loss, soft, hits in (self._team.total(sums) / self._num_images).tolist()]

    def logits(self, subnetwork):
        """Returns the logits of a sub-network: for every batch a float32 tensor [batch, classes]."""
        return self._first.logits(subnetwork)

    def learn(self, subnetwork):
        """Takes the logits of the next interim sub-network into the knowledge: T ← (T·(i+1) + logits) / (i+2)."""
        self._team.run(lambda number: self.evaluators[number].learn(subnetwork))

    def keep_states(self, subnetwork):
        """Keeps what the candidates of the present sub-network share, as learn() does; see Evaluator.keep_states."""
        self._team.run(lambda number: self.evaluators[number].keep_states(subnetwork))

    @property
    def knowledge(self):
        """The knowledge T of all images of D_val, float32 [images, classes]."""
        return self._first.knowledge

    def restore_knowledge(self, knowledge, num_learned):
        """Sets the knowledge that so many interim sub-networks left."""
        self._team.run(lambda number: self.evaluators[number].restore_knowledge(knowledge, num_learned))

    def gate_products(self, subnetwork):
        """Yields for every batch {site: |Σ over batch, height, width of (∂L/∂y)·y|}; see Evaluator.gate_products."""
        found = self._by_batch("gate_products", subnetwork)
        sites, index = self.supernet.layout.sites, self.supernet.layout.index
        edges = np.cumsum([0, *(len(index[site]) for site in sites)])
        table = np.zeros((len(self.labels), edges[-1]), np.float32)
        for number, products in found.items():
            table[number] = np.concatenate([products[site] for site in sites])
        for row in self._team.total(table):
            yield {site: row[start:stop] for site, start, stop in zip(sites, edges, edges[1:])}

    def sample_sensitivities(self, subnetwork):
        """Returns Σ over all images |∂CE/∂m · m|, float64 [number of channels]; see Evaluator.sample_sensitivities."""
        table = np.zeros((len(self.labels), self.supernet.layout.num_channels))
        for number, sums in self._by_batch("sample_sensitivities", subnetwork).items():
            table[number] = sums
        return self._team.total(table).sum(axis=0)

    def _by_batch(self, method, subnetwork):
        """Returns {number of a batch: what the evaluators' method finds} for the batches of this process's members."""
        own = {number: range(number, len(self.labels), self._team.count) for number in self._team.numbers}
        found = self._team.run(lambda number: getattr(self.evaluators[number], method)(subnetwork, own[number]))
        return {number: value for batches in found.values() for number, value in batches.items()}

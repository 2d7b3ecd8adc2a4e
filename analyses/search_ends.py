"""Sub-networks at the ends of searches that choose at random among their best candidates.

The search that takes the best candidate in each step ends like the method. The more candidates the
others choose among, the higher are their final losses.
"""

import numpy as np

from ekg.devices.compute import full_float32
from ekg.process.progress import progress_bar
from ekg.searching.greedy import try_groups
from ekg.searching.history import HistoryEntry

SEED = 7


def num_best(number, choices):
    """Returns the number of best candidates that a search chooses among: 1, then 2 to `choices`.

    Args:
        number: number of the search, from 0.
        choices: largest number of candidates, at least 2.
    """
    return 1 if number == 0 else 2 + (number - 1) % (choices - 1)


def search_end(objective, supernet, batches, settings, number, choices):
    """Returns the last HistoryEntry of a search that chooses among the num_best() candidates.

    Each step takes one of the candidates with the best rewards, all equally likely. The draws
    depend only on the number of the search.

    Args:
        objective: Objective of the supernet; it is reset, without knowledge.
        supernet: the Supernet.
        batches: data.Batches of D_val.
        settings: SearchSettings.
        number: number of the search, from 0.
        choices: largest number of candidates that a step chooses among.
    """
    rng = np.random.default_rng([SEED, number])
    target = settings.targets()
    whole = supernet.whole()
    objective.start_from(supernet, batches)
    with full_float32(), progress_bar(f"search {number}", None, "step") as progress:
        objective.add_knowledge(whole)
        score = objective.scores(whole, [(None, whole)])[0]
        history = [
            HistoryEntry(0, None, whole, 1.0, score.loss, score.accuracy, score.reward, 1, 0.0)
        ]
        while not target.is_reached(supernet, history[-1].subnetwork):
            _, candidates, scores = try_groups(supernet, objective, history, target, settings, SEED)
            best = np.argsort([-score.reward for score in scores], kind="stable")
            taken = rng.choice(best[: num_best(number, choices)])
            group, subnetwork = candidates[taken]
            score = scores[taken]
            objective.add_knowledge(subnetwork)
            history.append(
                HistoryEntry(
                    len(history),
                    supernet.groups[group].name,
                    subnetwork,
                    supernet.rate(subnetwork),
                    score.loss,
                    score.accuracy,
                    score.reward,
                    len(candidates),
                    0.0,
                )
            )
            progress.update(1)
    return history[-1]

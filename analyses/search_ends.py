"""Sub-networks such as a search finds: the ends of searches that choose among their best candidates
by chance.

The one that takes the best candidate in each step ends where the method does. The more candidates
the others choose among, the higher are the losses that they end at.
"""

import numpy as np

from ekg.devices.compute import full_float32
from ekg.process.progress import progress_bar
from ekg.searching.greedy import try_groups
from ekg.searching.history import HistoryEntry

SEED = 7


def num_best(number, choices):
    """Returns among how many of the best candidates the search of this number chooses: 1 for the
    first, then 2 to `choices`.

    Args:
        number: of the search, from 0 on.
        choices: at least 2.
    """
    return 1 if number == 0 else 2 + (number - 1) % (choices - 1)


def search_end(objective, supernet, batches, settings, number, choices):
    """Returns the last HistoryEntry of a search whose every step takes one of the num_best()
    candidates of the best rewards.

    All of them are equally likely. What is drawn depends on the number alone.

    Args:
        objective: Objective of the supernet; it begins again, with no knowledge.
        supernet: the Supernet.
        batches: data.Batches of D_val.
        settings: SearchSettings.
        number: of the search, from 0 on.
        choices: candidates that a step chooses among, at most.
    """
    rng, target, whole = np.random.default_rng([SEED, number]), settings.targets(), supernet.whole()
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
            (group, subnetwork), score = candidates[taken], scores[taken]
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

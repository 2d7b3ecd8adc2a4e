"""The networks that the trainings of the proof start from: searched, cut by others, repaired or
not.
"""

import argparse
import dataclasses
import functools

import keras
import numpy as np
import utils
from ekg.io import files
from ekg.distil import bank as banks
from ekg.distil.slim import cut_with_statistics, restore_norms_
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.graph.neighbours import sole_readers
from ekg.network.supernet import Supernet
from ekg.run import folder as names
from ekg.run import phases
from ekg.run.settings import RunSettings
from ekg.searching.settings import SUBSET_PER_CLASS, SearchSettings, SubsetSettings

from benchmarks import peers
from benchmarks.proof import recipes, setting

HASH_DIGITS = 8
TINY = 1e-12


class Start:
    """What a Run starts from.

    Attributes:
        unpruned: the unpruned keras.Model.
        history: of the search, list of HistoryEntry; empty where nothing was searched.
    """

    def __init__(self, made_for):
        """
        Args:
            made_for: setting.Setting of the run.
        """
        self._setting, self.history = made_for, []
        self.unpruned = made_for.load(made_for.baseline)
        if made_for.run.is_searched:
            self._supernet, self.history = self._search()

    # ---------------------------------------------------------------- search

    @functools.cached_property
    def _key(self):
        """What tells the search, or the cut, from others: the seed of its unpruned network and
        more.
        """
        run, hashed = self._setting.run, files.sha256(self._setting.baseline)[:HASH_DIGITS]
        arch = run.arch.lower().replace("resnet-", "r")
        return f"{arch}-{run.rate:g}-{run.cut}-s{run.seed}-{hashed}"

    def _search(self):
        """Returns (Supernet, history); a finished search that the records keep is not made
        again.
        """
        made_for, run = self._setting, self._setting.run
        kept = made_for.place.records / "searches" / f"{self._key}.jsonl"
        path = made_for.place.work / "searches" / self._key
        with setting.alone(path):
            data = setting.with_validation(made_for.data, run.cut, made_for.whole_data)
            subset = SubsetSettings(min(SUBSET_PER_CLASS, data.largest_class()))
            job = made_for.job(
                {
                    "subset": subset,
                    "search": self._search_settings(),
                    "run": RunSettings(seed=run.seed),
                },
                data,
                path,
            )
            supernet = phases.warm_up(job, self.unpruned)
            if kept.exists():
                text = kept.read_bytes()
                files.write_whole(path / names.HISTORY, lambda file: file.write(text))
            target = job.settings.targets().prepare(job.supernet, job.team)
            history = phases.search(job, supernet, target)
            if not kept.exists():
                text = (path / names.HISTORY).read_bytes()
                kept.parent.mkdir(parents=True, exist_ok=True)
                files.write_whole(kept, lambda file: file.write(text))
        return supernet, history

    def _search_settings(self):
        run, options = self._setting.run, {}
        if run.cut == "published":
            options["group_choice"] = "published"
        if run.cut == "params":
            options["target_params"] = self._params_of_taylor()
        return SearchSettings(target_rate=run.rate, **options)

    def _params_of_taylor(self):
        """Returns the share of the parameters that group Taylor leaves of the same network."""
        cut = dataclasses.replace(self._setting.run, cut="group-taylor")
        other = setting.Setting(cut, self._setting.place)
        taylor = Start(other).cut()
        return taylor.count_params() / self.unpruned.count_params()

    # ---------------------------------------------------------------- networks

    def cut(self):
        """Returns the network that training starts from, made under the team's strategy."""
        made_for, run = self._setting, self._setting.run
        if run.cut == "unpruned":
            return made_for.load(made_for.baseline)
        if run.is_searched:
            return self._slimmed(self._supernet, self.history[-1].subnetwork)
        path = made_for.place.work / "cuts" / self._key
        with setting.alone(path):
            if not (path / names.SLIMMED).exists():
                utils.save_params(self._cut_by_peer(path), path / names.SLIMMED)
        model = made_for.load(path / names.SLIMMED)
        if not run.is_repaired:
            return model
        supernet = Supernet(self.unpruned)
        return self._slimmed(supernet, recover_subnetwork(supernet, model))

    def _cut_by_peer(self, path):
        made_for, run = self._setting, self._setting.run
        args = argparse.Namespace(
            method=run.cut,
            arch=run.arch,
            target_rate=run.rate,
            seed=run.seed,
            out=path,
            peer_env=made_for.place.peer_env,
            trained_param=made_for.baseline,
        )
        return peers.make_network(args, made_for.data, self.unpruned, made_for.compute)

    def _slimmed(self, supernet, subnetwork):
        """Returns a sub-network cut out, repaired if asked, its kernels at their former norms."""
        made_for, val_batches = self._setting, None
        if made_for.run.is_repaired:
            split = made_for.data.last_of_each_class(
                SearchSettings.val_per_class, made_for.run.seed
            )
            val_batches = made_for.data.batches(split, setting.BATCH)
        model = cut_with_statistics(
            supernet, subnetwork, made_for.train_batches, made_for.compute, val_batches
        )
        restore_norms_(model, supernet.graph)
        return model

    # ---------------------------------------------------------------- teachers

    def make_bank(self):
        """Returns the MemoryBank of the search, which several runs share."""
        path = self._setting.place.work / "banks" / self._key
        compute = dataclasses.replace(self._setting.compute, dtype="float32")
        batches = self._setting.train_batches
        with setting.alone(path):
            banks.build_bank(
                path, self._supernet, recipes.teachers_of(self.history), batches, compute
            )
        return banks.open_bank(path, batches)

    def make_teachers(self):
        """Returns the networks of the memory bank's teachers, cut out, the top one first."""
        with self._setting.compute.team.strategy.scope():
            return [
                self._supernet.cut(entry.subnetwork) for entry in recipes.teachers_of(self.history)
            ]


def recover_subnetwork(supernet, model):
    """Returns the Subnetwork that another program cut out of a network.

    Channels are known by the scale and offset of their batch norm, which that program left as they
    were.

    Args:
        supernet: Supernet of the unpruned network.
        model: the smaller keras.Model, of the same layers.

    Raises:
        EkgError: a channel cannot be told, or a kernel is no multiple of a slice of the unpruned
            one's.
    """
    order, counts = [], []
    rows_of, kept_of = (_norm_rows(one) for one in (supernet.model, model))
    for group in supernet.groups:
        rows = rows_of[group.writers[0]]
        kept = [_find(row, rows, group.name) for row in kept_of[group.writers[0]]]
        order.append((*kept, *sorted(set(range(group.size)) - set(kept))))
        counts.append(len(kept))
    found = dataclasses.replace(supernet.whole(), order=tuple(order), kept_counts=tuple(counts))
    pairs = zip(supernet.cut(found).trainable_variables, model.trainable_variables, strict=True)
    for ours, theirs in pairs:
        ours, name, theirs = ours.numpy(), theirs.path, theirs.numpy()
        factor = np.linalg.norm(theirs) / max(np.linalg.norm(ours), TINY)
        if ours.shape != theirs.shape or not np.allclose(
            factor * ours, theirs, rtol=1e-3, atol=1e-5
        ):
            raise EkgError(f"{name} is no slice of the unpruned network's.")
    return found


def _norm_rows(model):
    """Returns {convolution: scale and offset of the batch norm that reads it, [channels, 2]}."""
    pairs = sole_readers(Graph(model)).items()
    return {
        call.key: np.stack([norm.layer.gamma.numpy(), norm.layer.beta.numpy()], axis=1)
        for call, norm in pairs
        if isinstance(norm.layer, keras.layers.BatchNormalization)
    }


def _find(row, rows, name):
    """Returns the number of the row that a channel came from."""
    matches = np.flatnonzero((rows == row).all(axis=1))
    if len(matches) != 1:
        raise EkgError(
            f"channel group {name}: {len(matches)} channels have the batch norm of one that "
            "was kept; it cannot be told which that is."
        )
    return int(matches[0])

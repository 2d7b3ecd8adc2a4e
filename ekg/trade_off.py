"""The whole trade-off between accuracy and cost: a network pruned to several rates."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from ekg.errors import EkgError
from ekg.io.files import check_paths
from ekg.pruning import PruneResult, prune
from ekg.report import front as report
from ekg.report import page
from ekg.run.choice import CUT

PICTURE, PAGE = "front.png", "front.html"


def point_folder(folder, rate):
    """Returns the pathlib.Path of the run folder of one rate in the folder of a front."""
    return Path(folder) / f"rate_{rate:g}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Front:
    """A network pruned to several rates.

        front = ekg.front(model, data, rates=(0.8, 0.6, 0.45))
        print(front.summary())
        front[0.6].model

    Attributes:
        rates: shares of the FLOPs that were asked for, in falling order.
        results: tuple of PruneResult, one per rate.
    """

    rates: tuple[float, ...]
    results: tuple[PruneResult, ...]

    def __repr__(self) -> str:
        rates = ", ".join(f"{rate:g}" for rate in self.rates)
        return f"Front({self.results[0].model.name} at {rates} of the FLOPs)"

    def _repr_html_(self) -> str:
        """Returns the table of the front, as notebooks show it."""
        return page.table_html(*report.table_of(self._points()))

    def __getitem__(self, rate: float) -> PruneResult:
        """Returns the PruneResult of a rate that was asked for."""
        if rate not in self.rates:
            raise EkgError(f"the front has no rate {rate!r}; it has {list(self.rates)}.")
        return self.results[self.rates.index(rate)]

    def __len__(self) -> int:
        return len(self.rates)

    def summary(self) -> str:
        """Returns a Markdown table: the unpruned network and one row per rate."""
        points = self._points()
        return "\n".join([report.format_front(points), *report.notes_of(points)])

    def report(self, folder: str | Path) -> None:
        """Writes front.html and front.png into a folder.

        Args:
            folder: path; it is made if it is missing.

        Raises:
            EkgError: matplotlib is not installed, or the folder cannot be written.
        """
        with page.report_folder(folder) as path:
            report.write_front(self._points(), path / PICTURE, path / PAGE)

    def _points(self):
        return [
            report.FrontPoint(
                f"{rate:g} of the FLOPs", result.run, result.is_repaired, _notes_of(result)
            )
            for rate, result in zip(self.rates, self.results)
        ]


def _notes_of(result):
    """Returns a tuple of the sentences on a PruneResult besides those on its times."""
    hands_out_cut = result.run.choice is not None and result.run.choice["name"] == CUT
    return (*result.note.split("\n"), *([result.choice] if hands_out_cut else []))


def front(
    model: keras.Model,
    data: Any,
    rates: Sequence[float],
    *,
    run_dir: str | Path | None = None,
    **options: Any,
) -> Front:
    """Prunes a trained network to several rates and returns the Front of them.

        front = ekg.front(model, data, rates=(0.8, 0.6, 0.45, 0.3), epochs=20)

    The searches share their first steps: all of them together cost little more than the longest.
    Each finds exactly what a search of its own finds. With `epochs=None` the networks are cut out
    and repaired without any training.

    Args:
        model: trained keras.Model.
        data: training data; see ekg.prune.
        rates: shares of the FLOPs to keep, each in (0, 1).
        run_dir: folder with one run folder per rate, so that the same call resumes where it was
            stopped; None keeps nothing.
        options: all other arguments of ekg.prune but `target_rate`, `target` and `search_from`.

    Raises:
        EkgError: a rate is out of range or given twice; or see ekg.prune.
    """
    falling = check_rates(rates)
    check_paths({"run_dir": run_dir})
    for name in ("target_rate", "target", "search_from", "restart"):
        if options.get(name) is not None:
            raise EkgError(f"`{name}` has no effect on a front; leave it out.")
    results, earlier = [], None
    with _folder(run_dir) as folder:
        for rate in falling:
            path = point_folder(folder, rate)
            results.append(
                prune(model, data, target_rate=rate, run_dir=path, search_from=earlier, **options)
            )
            earlier = path
    return Front(falling, tuple(results))


def check_rates(rates):
    """Returns the rates of a front as a tuple of floats in falling order.

    Raises:
        EkgError: there is none, one is not a number in (0, 1), or one is given twice.
    """
    values = list(rates) if isinstance(rates, (list, tuple)) else [rates]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise EkgError(f"`rates` must be numbers between 0 and 1; received {value!r}.")
    if not values or len(set(values)) < len(values):
        raise EkgError(f"`rates` must be different numbers, at least one; received {values}.")
    return tuple(sorted(map(float, values), reverse=True))


@contextlib.contextmanager
def _folder(run_dir):
    if run_dir is not None:
        yield Path(run_dir)
        return
    with tempfile.TemporaryDirectory(prefix="ekg-front-") as path:
        yield Path(path)

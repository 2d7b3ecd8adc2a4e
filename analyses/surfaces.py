"""Measures loss surfaces of stored networks along two filter-normalised directions."""

import dataclasses

import numpy as np

from analyses.results import write_results
from analyses.stored import measure_networks, minutes
from ekg.errors import EkgError
from ekg.landscape.hessian import model_landscape
from ekg.landscape.surfaces import surface
from ekg.process.progress import progress_bar
from ekg.settings import COUNT, MACHINE, POSITIVE, SEARCH, Settings, setting

DIRECTIONS_SEED = 0


@dataclasses.dataclass(frozen=True)
class GridSettings(Settings):
    """The grid of a loss surface."""

    grid: int = setting(25, "points along each direction, an odd number", SEARCH, range=COUNT)
    span: float = setting(
        1.0, "extent of the grid, in multiples of the filters' norms", SEARCH, range=POSITIVE
    )
    scale: str = setting(
        "log",
        "scale of losses in the picture; a linear one hides details near the network",
        MACHINE,
        choices=("log", "linear"),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.grid % 2 == 0:
            raise EkgError(
                f"`grid` must be odd, so that its middle is the network; received {self.grid}."
            )

    @property
    def steps(self):
        """Multiples of a direction at the grid points, float64 [grid]."""
        return np.linspace(-self.span, self.span, self.grid)


def measure_surfaces(subject, paths, images, settings, out):
    """Measures, writes and draws loss surfaces of stored networks; returns a row per network.

    Args:
        subject: Subject.
        paths: list of parameter files.
        images: ImageSettings.
        settings: GridSettings.
        out: pathlib.Path of the folder for the results.
    """
    from analyses import pictures  # imports matplotlib

    steps = settings.steps
    middle = settings.grid // 2

    def measure(model, batches, name):
        network = model_landscape(model, batches, batch_statistics=images.batch_statistics)
        losses = _measure(network, name, steps)
        return {
            "loss": losses[middle, middle],
            "lowest": losses.min(),
            "highest": losses.max(),
            "surface": losses.tolist(),
        }

    options = {"grid": settings.grid, "span": settings.span}
    rows, arguments = measure_networks(
        subject, paths, images, options, out / "surfaces.jsonl", measure
    )
    pictures.draw_surfaces(
        out / "landscape.png",
        [row["network"] for row in rows],
        steps,
        [np.array(row["surface"]) for row in rows],
        settings.scale,
    )
    text = "; ".join(
        f"{row['network']}: loss {row['loss']:.4f} at the network, {row['lowest']:.4f} to "
        f"{row['highest']:.4f} on the grid"
        for row in rows
    )
    write_results(
        out,
        "landscape",
        rows,
        text,
        steps=steps.tolist(),
        arguments=arguments,
        minutes=minutes(rows),
    )
    return rows


def _measure(landscape, name, steps):
    """Returns the losses on the grid, float64 [len(steps), len(steps)]; shows a progress bar."""
    directions = landscape.directions(DIRECTIONS_SEED)
    with progress_bar(f"surface of {name}", len(steps) ** 2, "point") as progress:
        return surface(landscape, directions, steps, lambda: progress.update(1))

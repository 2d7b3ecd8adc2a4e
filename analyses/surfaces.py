"""Loss surfaces of networks along two filter-normalised directions, on one scale."""

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
        1.0, "how far the grid goes, in multiples of the filters' norms", SEARCH, range=POSITIVE
    )
    scale: str = setting(
        "log",
        "of the picture's losses; on a linear one a high corner hides what lies near the network",
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
        """Multiples of a direction, float64 [grid]."""
        return np.linspace(-self.span, self.span, self.grid)


def measure_surfaces(subject, paths, images, settings, out):
    """Measures loss surfaces of stored networks; writes them, draws them and returns a row for each
    network.

    Args:
        subject: Subject.
        paths: parameter files.
        images: ImageSettings.
        settings: GridSettings.
        out: pathlib.Path of the folder for the results.
    """
    from analyses import pictures  # imports matplotlib

    steps, middle = settings.steps, settings.grid // 2

    def measure(model, batches, name):
        losses = _measure(
            model_landscape(model, batches, batch_statistics=images.batch_statistics), name, steps
        )
        return {
            "loss": losses[middle, middle],
            "lowest": losses.min(),
            "highest": losses.max(),
            "surface": losses.tolist(),
        }

    rows, arguments = measure_networks(
        subject,
        paths,
        images,
        {"grid": settings.grid, "span": settings.span},
        out / "surfaces.jsonl",
        measure,
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
    """Returns the losses on the grid, float64 [len(steps), len(steps)], under a progress bar."""
    with progress_bar(f"surface of {name}", len(steps) ** 2, "point") as progress:
        return surface(
            landscape, landscape.directions(DIRECTIONS_SEED), steps, lambda: progress.update(1)
        )

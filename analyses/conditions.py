"""Condition numbers of stored networks, which measure how smooth the loss is."""

import dataclasses
import logging
from pathlib import Path

import nets
from analyses.results import write_results
from analyses.stored import measure_networks, minutes
from ekg.errors import EkgError
from ekg.io import files
from ekg.landscape import lanczos
from ekg.landscape.hessian import PARAMETERS, model_landscape
from ekg.process.progress import progress_bar
from ekg.settings import COUNT, NOT_NEGATIVE, SEARCH, Settings, setting

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SpectrumSettings(Settings):
    """Accuracy and cost of eigenvalues."""

    tolerance: float = setting(
        lanczos.TOLERANCE,
        "largest residual of an eigenvalue, as a share of the eigenvalue",
        SEARCH,
        range=NOT_NEGATIVE,
    )
    max_products: int = setting(
        lanczos.MAX_PRODUCTS, "largest number of Hessian-vector products", SEARCH, range=COUNT
    )


@dataclasses.dataclass(frozen=True)
class HessianSettings(Settings):
    """Which Hessian of a stored network is taken."""

    parameters: str = setting(
        "kernels",
        "parameters with respect to which the Hessian is taken",
        SEARCH,
        choices=PARAMETERS,
    )
    norms_of: Path | None = setting(
        None,
        "parameter file of the network from which the others were cut: kernels before batch "
        "norms are rescaled to their norms in this network, as κ depends on their scale; by "
        "default they are taken as stored",
        SEARCH,
        may_be_none=True,
    )


class NotConverged(Exception):
    """Eigenvalues are not known to the tolerance; the results were written anyway."""


def measure_conditions(subject, paths, images, settings, hessian, out):
    """Measures, writes and draws condition numbers of stored networks; returns a row per network.

    Args:
        subject: Subject.
        paths: list of parameter files.
        images: ImageSettings.
        settings: SpectrumSettings.
        hessian: HessianSettings.
        out: pathlib.Path of the folder for the results.

    Raises:
        EkgError: the network that `hessian` names was cut itself.
        NotConverged: an eigenvalue is not known to the tolerance.
    """
    from analyses import pictures  # imports matplotlib

    original = None if hessian.norms_of is None else subject.load(hessian.norms_of)
    if original is not None and _was_cut(subject, original):
        raise EkgError(f"`norms_of` {hessian.norms_of}: was cut itself; name the unpruned network.")

    def measure(model, batches, name):
        if original is None and _was_cut(subject, model):
            logger.warning(
                "%s was cut, and its kernels are taken as they are stored: name the network from "
                "which it was cut with --norms_of, so that condition numbers can be compared.",
                name,
            )
        landscape = model_landscape(
            model,
            batches,
            parameters=hessian.parameters,
            batch_statistics=images.batch_statistics,
            original=original,
        )
        spectrum = _spectrum(landscape, f"eigenvalues of {name}", settings)
        values = {"condition": spectrum.condition, "loss": landscape.loss(landscape.point)}
        return values | spectrum_values(spectrum)

    options = {"parameters": hessian.parameters, **dataclasses.asdict(settings)}
    if original is not None:
        options["norms_of"] = files.sha256(hessian.norms_of)
    rows, arguments = measure_networks(
        subject, paths, images, options, out / "conditions.jsonl", measure
    )
    names = [row["network"] for row in rows]
    pictures.draw_conditions(out / "condition.png", names, [row["condition"] for row in rows])
    text = "; ".join(
        f"{row['network']}: |λmin/λmax| = |{row['smallest']:.4g} / {row['largest']:.4g}| = "
        f"{row['condition']:.4f} (residuals {row['residual_smallest']:.2g}, "
        f"{row['residual_largest']:.2g}, {row['products']} products)"
        for row in rows
    )
    write_results(out, "condition", rows, text, arguments=arguments, minutes=minutes(rows))
    check_converged(rows, "network", out)
    return rows


def _was_cut(subject, model):
    """Returns whether a network is smaller than the unpruned one, so its kernels have lost norm."""
    unpruned = nets.build(subject.arch, subject.data.num_classes)
    return model.count_params() < unpruned.count_params()


def _spectrum(landscape, title, settings):
    """Returns the Spectrum of a landscape, and shows a progress bar with this title."""
    with progress_bar(title, settings.max_products, "product") as progress:

        def show(_, residual):
            progress.update(1)
            progress.set_postfix(residual=f"{residual:.3g}")

        return landscape.spectrum(**dataclasses.asdict(settings), on_product=show)


def spectrum_values(spectrum):
    """Returns all values of a Spectrum, with "condition", as {name: value}."""
    return dataclasses.asdict(spectrum) | {"condition": spectrum.condition}


def kept_spectrum_values(path, model, original, batches, settings):
    """Returns spectrum_values() of a cut network, with batch statistics and norms before the cut.

    Args:
        path: JSON file that stores the values, also those of an earlier call with equal settings.
        model: keras.Model of the cut network.
        original: keras.Model from which it was cut.
        batches: data.Batches.
        settings: SpectrumSettings.
    """
    options = dataclasses.asdict(settings) | {
        "batch_size": batches.batch_size,
        "former_norms": True,
    }
    stored = files.read_json(path) if path.exists() else {}
    if stored.get("options") != options:
        landscape = model_landscape(model, batches, batch_statistics=True, original=original)
        spectrum = landscape.spectrum(**dataclasses.asdict(settings))
        stored = spectrum_values(spectrum) | {"options": options}
        files.write_json(path, stored)
    return {name: value for name, value in stored.items() if name != "options"}


def check_converged(rows, name, out, advice="raise `max_products`"):
    """Raises NotConverged if an eigenvalue of a row is not known to the tolerance.

    Args:
        rows: list of dicts with spectrum_values().
        name: key of the entry that identifies a row.
        out: folder of the results, for the message.
        advice: what the user can do, for the message.
    """
    unsure = [
        f"{row[name]} (residuals {row['residual_smallest']:.2g}, {row['residual_largest']:.2g})"
        for row in rows
        if not row["converged"]
    ]
    if unsure:
        raise NotConverged(
            f"{len(unsure)} condition numbers are not known to the tolerance, of {name} "
            f"{', '.join(unsure)}; {advice}. The results are kept in {out}."
        )

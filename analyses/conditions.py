"""Condition numbers: how smooth the loss is at a network."""

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
    """How well eigenvalues must be known, and what may be spent on them."""

    tolerance: float = setting(
        lanczos.TOLERANCE,
        "of the residual of an eigenvalue, as a share of it",
        SEARCH,
        range=NOT_NEGATIVE,
    )
    max_products: int = setting(
        lanczos.MAX_PRODUCTS, "Hessian-vector products, at most", SEARCH, range=COUNT
    )


@dataclasses.dataclass(frozen=True)
class HessianSettings(Settings):
    """Which Hessian of a stored network."""

    parameters: str = setting("kernels", "of the Hessian", SEARCH, choices=PARAMETERS)
    norms_of: Path | None = setting(
        None,
        "parameter file of the network that the others were cut from: kernels that a batch norm "
        "follows are taken at the norms that they have there, as κ depends on their scale; "
        "without it as they are stored",
        SEARCH,
        may_be_none=True,
    )


class NotConverged(Exception):
    """Eigenvalues are not known to the tolerance; the results are kept all the same."""


def measure_conditions(subject, paths, images, settings, hessian, out):
    """Measures condition numbers of stored networks; writes them, draws them and returns a row for
    each network.

    Args:
        subject: Subject.
        paths: parameter files.
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
                "%s was cut, and its kernels are taken as they are stored: name the network that "
                "it was cut from with --norms_of, so that condition numbers can be compared.",
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
        return {
            "condition": spectrum.condition,
            "loss": landscape.loss(landscape.point),
        } | spectrum_values(spectrum)

    norms = {} if original is None else {"norms_of": files.sha256(hessian.norms_of)}
    asked = {"parameters": hessian.parameters, **dataclasses.asdict(settings), **norms}
    rows, arguments = measure_networks(
        subject, paths, images, asked, out / "conditions.jsonl", measure
    )
    pictures.draw_conditions(
        out / "condition.png", [row["network"] for row in rows], [row["condition"] for row in rows]
    )
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
    """Returns whether a network is smaller than the whole one, so its kernels have lost norm."""
    return model.count_params() < nets.build(subject.arch, subject.data.num_classes).count_params()


def _spectrum(landscape, title, settings):
    """Returns the Spectrum of a landscape, under a progress bar of this title."""
    with progress_bar(title, settings.max_products, "product") as progress:

        def show(_, residual):
            progress.update(1)
            progress.set_postfix(residual=f"{residual:.3g}")

        return landscape.spectrum(**dataclasses.asdict(settings), on_product=show)


def spectrum_values(spectrum):
    """Returns a whole Spectrum as {name: value}, "condition" among them."""
    return dataclasses.asdict(spectrum) | {"condition": spectrum.condition}


def kept_spectrum_values(path, model, original, batches, settings):
    """Returns spectrum_values() of a cut network at batch statistics, at the norms before the cut.

    Args:
        path: JSON file that keeps them, and has those of an earlier call with the same settings.
        model: keras.Model.
        original: the keras.Model that it was cut from.
        batches: data.Batches.
        settings: SpectrumSettings.
    """
    asked = dataclasses.asdict(settings) | {"batch_size": batches.batch_size, "former_norms": True}
    kept = files.read_json(path) if path.exists() else {}
    if kept.get("options") != asked:
        landscape = model_landscape(model, batches, batch_statistics=True, original=original)
        spectrum = landscape.spectrum(**dataclasses.asdict(settings))
        kept = spectrum_values(spectrum) | {"options": asked}
        files.write_json(path, kept)
    return {name: value for name, value in kept.items() if name != "options"}


def check_converged(rows, name, out, advice="raise `max_products`"):
    """Raises NotConverged if an eigenvalue of a row is not known to the tolerance.

    Args:
        rows: list of dicts with spectrum_values().
        name: of the entry that a row goes by.
        out: folder of the results, for the message.
        advice: what to do.
    """
    unsure = [
        f"{row[name]} (residuals {row['residual_smallest']:.2g}, {row['residual_largest']:.2g})"
        for row in rows
        if not row["converged"]
    ]
    if unsure:
        raise NotConverged(
            f"{len(unsure)} condition numbers are not known to the tolerance: those of {name} "
            f"{', '.join(unsure)}; {advice}. The results are kept in {out}."
        )

"""Refuses a job that could not be finished, before anything is written or trained.

A value outside its range never comes this far: ekg.settings refuses it when the settings are made,
and ekg.command_line refuses unknown flags.
"""

import logging

import numpy as np

from ekg.data.examples import draw_examples
from ekg.devices import kind
from ekg.errors import EkgError
from ekg.graph.layer_losses import warn_of_weight_decay
from ekg.network.masked_check import check_promise, num_examples
from ekg.run.choice import FEW_STEPS, count_steps

logger = logging.getLogger(__name__)

FEW_IMAGES = 100  # below which what a search finds is chance to a good part


def check(job):
    """Raises EkgError if a Job could not be finished."""
    settings, data, supernet = job.settings, job.data, job.supernet
    targets = settings.targets()
    targets.check(supernet)
    logger.info(
        "smallest possible rate %.4f; asked for %s",
        supernet.rate(supernet.smallest()),
        targets.describe() or "all of the FLOPs",
    )
    log_images_that_decide(data, settings.search.val_per_class)
    check_batches(settings, data)
    if settings.fine_tunes and (steps := count_steps(settings, data)) < FEW_STEPS:
        logger.warning(
            "fine-tuning takes %d steps in all; fewer than %d seldom make up for what was cut: "
            "take more epochs, or a smaller `batch_size`.",
            steps,
            FEW_STEPS,
        )
    warn_of_weight_decay(supernet.model, settings.recipe.decay(settings.fine_tuning))
    check_promise(supernet, draw_examples(data, num_examples(supernet.graph)))


def check_devices(settings, replicas):
    """Raises EkgError if batches cannot be shared out, or a number format needs another device.

    Args:
        settings: JobSettings.
        replicas: devices that share a batch.
    """
    devices, pieces = {"devices": replicas}, {"micro-batches (`accum`)": settings.run.accum}
    check_batch("batch_size", settings.fine_tuning.batch_size, devices | pieces)
    check_batch("search_batch_size", settings.search.search_batch_size, pieces)
    check_batch("val_batch_size", settings.run.val_batch_size, devices)
    check_precision(settings.run)


def check_precision(settings):
    """Raises EkgError if this machine cannot compute in the formats that RunSettings ask for."""
    for name in ("precision", "search_precision"):
        if getattr(settings, name) == "float16" and not kind.has_float16():
            raise EkgError(f"`{name}` float16: needs a GPU; on a CPU take bfloat16 or float32.")


def check_batch(name, batch_size, parts):
    """Raises EkgError if a batch cannot be split evenly.

    Args:
        name: setting of the batch.
        batch_size: images.
        parts: {what the batch is split into: number}.
    """
    count = int(np.prod(list(parts.values())))
    if batch_size % count:
        product = " x ".join(f"{number} {what}" for what, number in parts.items())
        raise EkgError(f"`{name}` {batch_size} must be a multiple of {count} = {product}.")


def check_batches(settings, data):
    """Raises EkgError if a batch is larger than the images that it is taken from.

    Args:
        settings: JobSettings.
        data: data set.
    """
    subset = data.first_of_each_class(settings.subset.subset_per_class, settings.run.seed)
    batches = [("search_batch_size", settings.search.search_batch_size, len(subset))]
    if settings.fine_tunes:
        batches.append(("batch_size", settings.fine_tuning.batch_size, len(data.train)))
    for name, batch_size, num_images in batches:
        if batch_size > num_images:
            raise EkgError(
                f"`{name}` {batch_size} is larger than the {num_images} images to train on; make "
                "it smaller."
            )


def log_images_that_decide(data, val_per_class):
    """Logs how many images the search evaluates on, and warns of few.

    Raises:
        EkgError: no class has so many.
    """
    number = len(data.last_of_each_class(val_per_class, 0))
    fewest = min(int(data.class_sizes.min()), val_per_class)
    logger.info(
        "the search decides by %d images: %d of each of %d classes or parts%s",
        number,
        val_per_class,
        data.num_strata,
        f", but at least {fewest}" if fewest < val_per_class else "",
    )
    if number < FEW_IMAGES:
        logger.warning(
            "only %d images decide what is pruned; results on other images may be far from "
            "theirs. Give more training data, or raise `val_per_class`.",
            number,
        )

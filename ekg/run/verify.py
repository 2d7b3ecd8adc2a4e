"""Verifies the files of a finished run, and removes damaged ones that can be made again."""

import logging
import zipfile

from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.io import files
from ekg.run import folder as names

logger = logging.getLogger(__name__)


def is_whole(job):
    """Returns whether a run that left its summary is finished.

    What is damaged, or must be made again, is removed with a warning, so that the phases make it
    again; then the run is not finished.

    Args:
        job: Job, of the chief's process.

    Raises:
        EkgError: the result is gone or damaged, and so is what it could be made of.
    """
    folder = job.folder
    whole = True
    try:
        folder.table()
    except EkgError as error:
        logger.warning("%s The networks are measured again.", error)
        whole = False
    for result, keras_file in dict.fromkeys(
        [job.result_names, job.handed_out if whole else job.result_names]
    ):
        whole = _is_whole(job, result, keras_file) and whole
    if whole:
        _name_damage(folder)
    else:
        (folder / names.SUMMARY).unlink(missing_ok=True)
    return whole


def _is_whole(job, result, keras_file):
    """Returns whether a network is there as a parameter file; its .keras file, made of that, goes
    where it is damaged.
    """
    folder, problem = job.folder, _problem(job.folder / result)
    if problem:
        _check_sources(job, folder / result, problem)
        logger.warning("%s: %s; it is made again of what is left.", folder / result, problem)
        (folder / result).unlink(missing_ok=True)
        (folder / keras_file).unlink(missing_ok=True)
    elif not _is_archive(folder / keras_file):
        logger.warning("%s: gone or damaged; it is made again of %s.", folder / keras_file, result)
        (folder / keras_file).unlink(missing_ok=True)
    return not problem


def _name_damage(folder):
    """Names what is damaged of the files that a finished run's result was made of; what is gone, a
    user has removed.
    """
    damaged = [
        folder / name
        for name in (names.BASELINE, names.SUPERNET, names.SLIMMED)
        if folder.has(name) and _problem(folder / name)
    ]
    damaged += [
        folder / name
        for name in (names.SLIMMED_KERAS,)
        if folder.has(name) and not _is_archive(folder / name)
    ]
    try:
        folder.history()
    except EkgError as error:
        logger.warning("%s The result is whole; it does not need it.", error)
    if folder.has(names.BANK):
        damaged.append(bank_files.find_damage(folder / names.BANK))
    for path in filter(None, damaged):
        logger.warning("%s: damaged. The result is whole; it does not need it.", path)


def _problem(path):
    """Returns what is wrong with a parameter file, or None."""
    if not path.exists():
        return "is gone"
    try:
        files.read_sealed(path)
    except EkgError:
        return "is damaged"
    return None


def _check_sources(job, result, problem):
    """Raises EkgError unless what a result is made of is there."""
    folder = job.folder
    if result.name == names.TRAINED:
        needed = [
            folder.checkpoints("fine-tune"),
            folder / names.SLIMMED,
            folder / names.HISTORY,
            folder / names.SUPERNET,
        ]
        if job.settings.fine_tuning.finetune_teacher == "ensemble":
            needed.append(folder / names.BANK)
    else:
        needed = [folder / names.HISTORY, folder / names.SUPERNET]
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        raise EkgError(
            f"{result}: {problem}, and so are the files that it could be rebuilt from "
            f"({', '.join(missing)}); put the file back, or start again in another folder."
        )


def _is_archive(path):
    """Returns whether a .keras file is there and whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False

"""What analyses compute, and how they keep it: runs of a training script, fine-tuned sub-networks, condition numbers."""

import csv
import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import op_utils
import utils
from ekg import analysis, importance, landscape, losses, memory_bank, training
from ekg.graph import Graph
from ekg.objective import Objective
from ekg.run_folder import RunFolder

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).parents[1] / "train_cifar.py"


# ---------------------------------------------------------------- what is kept

def write_results(out, name, rows, text, **more):
    """Writes NAME.json, NAME.csv and NAME.txt, and prints the text."""
    out.mkdir(parents=True, exist_ok=True)
    utils.write_json(out / f"{name}.json", {"rows": rows, "text": text, **more})
    flat = [{key: value for key, value in row.items() if not isinstance(value, (list, dict))} for row in rows]
    with open(out / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    (out / f"{name}.txt").write_text(text + "\n")
    print(text)
    print(f"results: {out}", file=sys.stderr)


def known_rows(path, key):
    """Returns {row[key]: row} of the lines that an earlier call left."""
    return {row[key]: row for row in utils.read_json_lines(path)} if path.exists() else {}


def data_key(split):
    """Returns a text that tells images and labels from others."""
    return "".join(memory_bank.fingerprint(split)[name][:16] for name in ("labels", "sample"))


# ---------------------------------------------------------------- what is computed

def spectrum_of(model, split, normalise, cache, *, batch_size, **options):
    """Returns the Spectrum of a network at batch statistics as {name: value}, "condition" among them.

    Args:
        model: keras.Model.
        split: images and labels.
        normalise: uint8 images -> float32 images.
        cache: JSON file that keeps the result, and has that of an earlier call with the same options.
        batch_size: images that share batch statistics, at most.
        options: of Landscape.spectrum.
    """
    asked = options | {"batch_size": batch_size}
    found = utils.read_json(cache) if cache.exists() else {}
    if found.get("options") != asked:
        spectrum = landscape.of_model(model, split, normalise, batch_size=batch_size,
                                      batch_statistics=True).spectrum(**options)
        found = dataclasses.asdict(spectrum) | {"condition": spectrum.condition, "options": asked}
        utils.write_json(cache, found)
    return found


def measure_subnetworks(supernet, data, split, strategy, out, *, count, target_rate, epochs, batch_size, spectrum_options):
    """Measures random sub-networks before and after fine-tuning and returns a dict for each.

    Args:
        supernet: Supernet of the trained network.
        data: dataloader Dataset to fine-tune on and to test with.
        split: images and labels of the losses and condition numbers before.
        strategy: tf.distribute.Strategy of the fine-tuning.
        out: folder; its history.jsonl keeps every sub-network.
        count: of the sub-networks.
        target_rate: share of the FLOPs they keep.
        epochs: of fine-tuning.
        batch_size: images that share batch statistics, at most.
        spectrum_options: of Landscape.spectrum.
    """
    objective = Objective(supernet, split, data.normalise, batch_size=batch_size)
    objective.learn(supernet.whole())
    scores = importance.ekg(objective, supernet.whole())
    make = landscape.MaskedLandscapes(supernet, split, data.normalise, batch_size=batch_size)
    lines, known = out / "history.jsonl", known_rows(out / "history.jsonl", "number")
    for number in range(count):
        if number in known:
            continue
        subnetwork = analysis.random_subnetwork(supernet, scores, target_rate, np.random.default_rng([7, number]))
        score = objective.scores(subnetwork, [(None, subnetwork)])[0]
        spectrum = make(subnetwork).spectrum(**spectrum_options)
        tuned = tune(supernet.cut, subnetwork, data, strategy, out / "checkpoints" / f"subnetwork{number}", epochs=epochs,
                     batch_size=batch_size)
        known[number] = {"number": number, "rate": supernet.rate(subnetwork), "val_loss": score.loss,
                         "condition": spectrum.condition, "converged": spectrum.converged,
                         "residual_smallest": spectrum.residual_smallest, "residual_largest": spectrum.residual_largest,
                         "tuned_loss": tuned.loss, "tuned_top1": tuned.top1}
        utils.append_json_line(lines, known[number])
        logger.info("sub-network %d: validation loss %.4f, condition number %.4f, test loss after fine-tuning %.4f", number,
                    score.loss, spectrum.condition, tuned.loss)
    return [known[number] for number in range(count)]


def tune(cut, subnetwork, data, strategy, folder, *, epochs, batch_size):
    """Returns the test metrics of a sub-network that was cut out and fine-tuned with the labels alone.

    Args:
        cut: function from a sub-network to its keras.Model.
        subnetwork: Subnetwork.
        data: dataloader Dataset.
        strategy: tf.distribute.Strategy.
        folder: of its checkpoints.
        epochs: of fine-tuning.
        batch_size: of estimating statistics and of the evaluation.
    """
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = cut(subnetwork)
    training.estimate_statistics_(model, data, batch_size)
    forward = Graph(model).stateless_call
    trainer = op_utils.Trainer(strategy, model, losses.fine_tuning(data, "none", 1.0), weight_decay=5e-4, forward=forward)
    training.fit("fine-tune", trainer, data, op_utils.Schedule(0.01, (0.3, 0.6, 0.8), 0.2, epochs),
                 batch_size=min(128, len(data.train)), seed=0, folder=RunFolder(folder, {}), num_views=losses.NUM_VIEWS)
    return op_utils.evaluate(strategy, model, data.test, data.normalise, batch_size, forward=forward)


# ---------------------------------------------------------------- runs

def run_training(folder, *flags):
    """Returns the finished Run of train_cifar.py with these flags in this folder, which goes on where it stopped.

    Raises:
        utils.Stopped: a signal asked this process to end; the run has ended with a checkpoint.
        SystemExit: the run failed, with its exit code.
    """
    logger.info("run %s", folder.name)
    utils.check_stopped()
    code = run_process([sys.executable, str(SCRIPT), "--train_path", str(folder), *flags])
    utils.check_stopped()
    if code:
        logger.error("the run %s ended with exit code %d.", folder.name, code)
        sys.exit(code)
    return analysis.read_run(folder)


def run_process(command):
    """Runs a command and returns its exit code; a signal that asks this process to end goes on to it."""
    process, is_told = subprocess.Popen(command, stdout=subprocess.DEVNULL), False  # noqa: S603
    while True:
        try:
            return process.wait(0.5)
        except subprocess.TimeoutExpired:
            if utils.is_stopping() and not is_told:
                process.terminate()
                is_told = True

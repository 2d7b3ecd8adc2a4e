"""Damages every kind of file that is read, again and again: whatever is wrong ends in one typed
error, or in good data.

    python -m tests.programs.mutations --count 2000

Prints for every kind how many damaged files were refused, and how many were read all the same (a
file without a checksum may still make sense). Anything else than an EkgError ends it.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import numpy as np
import tensorflow as tf
from dataloader import own
from ekg.io import files
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.latency.table import Table, load_table, save_table
from ekg.network.subnetwork import Subnetwork
from ekg.report.table import Row
from ekg.run import environment
from ekg.run.folder import RunFolder
from ekg.searching import greedy
from ekg.searching.history import HistoryEntry
from ekg.train.checkpoints import Checkpoints
from nets import convert
from tests.helpers.models import make_tiny_resnet
from tests.helpers.damage import mutate, mutate_content

IMAGE = (8, 8, 3)
INFO = {"rows": 40, "outputs": [3], "dtype": "float32", "teachers": [0, 1]}
SUBNETWORK = Subnetwork(("a",), ((0, 1, 2),), (2,))
HERE = {"cores": 2, "instructions": "avx2 fma", "GPUs": []}
ROW = Row("baseline", 1.0, {"top1": 0.5}, 5, 7, 9)


class Knowledge:
    """Stands for the objective whose knowledge is restored."""

    num_images = 12

    def restore_knowledge(self, knowledge, num_added):
        assert knowledge.shape == (12, 3) and num_added == 2

    def add_knowledge(self, _):
        pass

    cache_states = add_knowledge


def write_all(folder):
    """Writes a good file of every kind and returns {kind: (file to damage, function that reads
    it)}.
    """
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    files.write_json(run / "arguments.json", {"target_rate": 0.5, "arch": "ResNet-8"})
    for step in range(3):
        run.append_history(HistoryEntry(step, None, SUBNETWORK, 0.9, 1.0, 0.5, -2.0, 1, 0.1))
        files.append_json_line(run / "curves.jsonl", {"phase": "search", "step": step, "loss": 1.0})
        files.append_json_line(
            run / "phases.jsonl", {"phase": "search", "seconds": 1.0, "peak_memory_mib": 5}
        )
    files.append_json_line(run / "environments.jsonl", HERE)
    files.write_json(run / "summary.json", {"table": [dataclasses.asdict(ROW)], "phases": {}})
    greedy._save_knowledge(run / "search_state.npz", np.ones((12, 3), np.float32), 2)
    model = make_tiny_resnet()
    utils.save_params(model, folder / "p.pkl")
    model.save(folder / "m.keras")
    conditions = {"runtime": "litert", "batch": 1, "threads": 1, "versions": {}, "machine": {}}
    save_table(folder / "table.json", Table(conditions))
    np.savez(folder / "data.npz", x=np.zeros((4, *IMAGE), np.float32), y=np.arange(4) % 2)
    np.savez_compressed(
        folder / "packed.npz", x=np.zeros((4, *IMAGE), np.float32), y=np.arange(4) % 2
    )
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        keras.utils.save_img(
            folder / "images" / name / "i.png", np.arange(192).reshape(IMAGE), scale=False
        )
    keras.utils.save_img(
        folder / "images" / "a" / "i.jpg", np.arange(192).reshape(IMAGE), scale=False
    )
    kinds = {
        "arguments": (run / "arguments.json", lambda _: run.arguments()),
        "history": (run / "history.jsonl", lambda _: run.history()),
        "curves": (run / "curves.jsonl", files.read_report_lines),
        "phases": (run / "phases.jsonl", lambda _: run.phases()),
        "table": (run / "summary.json", lambda _: run.table()),
        "environments": (
            run / "environments.jsonl",
            lambda path: environment.keep(path, HERE, is_strict=False),
        ),
        "knowledge": (run / "search_state.npz", read_knowledge),
        "parameters": (folder / "p.pkl", utils.load_params),
        ".keras": (folder / "m.keras", utils.load_keras),
        "latency table": (folder / "table.json", lambda path: load_table(path, conditions)),
        ".npz": (folder / "data.npz", lambda path: own.load(path, IMAGE)),
        "packed .npz": (folder / "packed.npz", lambda path: own.load(path, IMAGE)),
        ".png": (folder / "images/a/i.png", lambda path: read_images(path.parents[1])),
        ".jpg": (folder / "images/a/i.jpg", lambda path: read_images(path.parents[1])),
    }
    return (
        kinds
        | write_torch(folder / "w.pth")
        | write_bank(folder / "bank")
        | write_checkpoint(folder / "checkpoints")
    )


def write_torch(path):
    """Weights of another program, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.save({"module.a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    return {".pth": (path, convert.read_weights)}


def read_knowledge(path):
    entry = type("Entry", (), {"subnetwork": None})
    greedy._restore_knowledge(Knowledge(), [entry] * 3, path)


def read_images(folder):
    data, _ = own.load(folder, IMAGE)
    return data.read(np.arange(len(data.labels)))


def write_bank(folder):
    """A memory bank of which only undamaged rows may count."""
    rows = np.arange(240, dtype=np.float32).reshape(40, 2, 3)
    writer = bank_files.BankWriter(folder, INFO, 0)
    writer.open()
    for part in np.split(rows, 4):
        writer.write(part)
        writer._write_block()
    writer.close()

    def read(_):
        good = bank_files.count_good(folder, INFO)
        if good:
            head, data = (
                bank_files.header(rows.shape, rows.dtype),
                (folder / bank_files.ARRAY_FILE).read_bytes(),
            )
            assert data.startswith(head + rows[:good].tobytes())

    return {
        f"bank's {name}": (folder / name, read)
        for name in (bank_files.ARRAY_FILE, bank_files.INFO_FILE, bank_files.BLOCKS_FILE)
    }


def write_checkpoint(folder):
    """Two checkpoints, of which the damaged one may not be used."""
    variable = tf.Variable([1.0, 2.0])
    Checkpoints(folder, value=variable).save({"step": 1})
    Checkpoints(folder, value=variable).save({"step": 2})

    def read(_):
        other = tf.Variable([0.0, 0.0])
        position = Checkpoints(folder, value=other).restore()
        assert position["step"] in (1, 2) and other.numpy().tolist() == [1.0, 2.0]

    return {f"checkpoint's {path.suffix}": (path, read) for path in sorted(folder.glob("ckpt-2.*"))}


def changed_json(data, rng):
    """Returns a JSON file, or one of JSON lines, of other content and with the right checksums."""
    lines = data.splitlines() if data.count(b"{") > 1 and b"\n{" in data else [data]
    number = int(rng.integers(len(lines)))
    value = json.loads(lines[number])
    del value[files.CHECKSUM]
    changed = mutate_content(value, rng)
    while not isinstance(changed, dict):
        changed = mutate_content(value, rng)
    lines[number] = json.dumps(files._with_checksum(changed)).encode()
    return b"\n".join([*lines, b""])


def nested_json(_data, rng):
    """Returns JSON that is nested deeply, with or without an end."""
    depth = int(rng.integers(500, 100_000))
    return b'{"a": ' * depth + b"1" + b"}" * (depth * int(rng.integers(2))) + b"\n"


WAYS = {"bytes": mutate, "content": changed_json, "nesting": nested_json}


def damage(path, read, count, rng, way="bytes"):
    """Returns {"refused", "read"}: what became of so many damaged files.

    Args:
        path: pathlib.Path of a good file.
        read: function of the path that reads it; returns, or raises EkgError.
        count: of damaged files.
        rng: numpy.random.Generator.
        way: one of WAYS; "content" and "nesting" are for files of JSON.
    """
    good, result = path.read_bytes(), {"refused": 0, "read": 0}
    read(path)
    for _ in range(count):
        path.write_bytes(WAYS[way](good, rng))
        try:
            read(path)
            result["read"] += 1
        except EkgError as error:
            if not str(error).isprintable() or str(path.parent) not in str(error):
                raise AssertionError(f"not one line that names the file: {error}") from error
            result["refused"] += 1
        except Exception as error:
            shutil.copy(path, Path(tempfile.gettempdir()) / f"damaged-{path.name}")
            raise AssertionError(f"{path.name}: {type(error).__name__}: {error}") from error
    path.write_bytes(good)
    read(path)
    return result


def main(argv=None):
    parser = argparse.ArgumentParser(description="Damage every kind of file that is read.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (path, read) in write_all(Path(folder)).items():
            if not args.kinds or kind in args.kinds:
                for way in WAYS if path.suffix in (".json", ".jsonl") else ("bytes",):
                    result = damage(path, read, args.count, np.random.default_rng(args.seed), way)
                    print(json.dumps({"kind": kind, "way": way} | result), flush=True)


if __name__ == "__main__":
    main()

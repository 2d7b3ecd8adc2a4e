"""Damages files and data of every kind: each must end in one typed error, or in good data.

    python -m tests.programs.mutations --count 2000

Prints for every kind how many damaged files were refused, and how many were read all the same (a
file without a checksum may still make sense), and the peak memory. Any other error ends it.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import numpy as np
import tensorflow as tf
from dataloader import own
from ekg.data.own import make_data
from ekg.io import files, h5_files
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.latency.table import Table, load_table, save_table
from ekg.network.subnetwork import Subnetwork
from ekg.process.memory import Peak
from ekg.report.table import Row
from ekg.run import environment
from ekg.run.folder import RunFolder
from ekg.searching import greedy
from ekg.searching.history import HistoryEntry
from ekg.train.checkpoints import Checkpoints
from nets import convert
from tests.helpers import small_jobs
from tests.helpers.damage import mutate, mutate_content
from tests.helpers.models import make_tiny_resnet

IMAGE = (8, 8, 3)
INFO = {"rows": 40, "outputs": [3], "dtype": "float32", "teachers": [0, 1]}
SUBNETWORK = Subnetwork(("a",), ((0, 1, 2),), (2,))
HERE = {"cores": 2, "instructions": "avx2 fma", "GPUs": []}
ROW = Row("baseline", 1.0, {"top1": 0.5}, 5, 7, 9)
TEXT = {
    "x": np.arange(8 * 192, dtype=np.float32).reshape(8, *IMAGE) / 999,
    "y": np.arange(8) % 2,
    "names": np.array(["cat", "dog"]),
}
NAMED = {"image": TEXT["x"], "y": TEXT["y"]}
NAMED_KIND = "named inputs"


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
    model.save(folder / "m.h5")
    model.save_weights(folder / "m.weights.h5")
    conditions = {"runtime": "litert", "batch": 1, "threads": 1, "versions": {}, "machine": {}}
    save_table(folder / "table.json", Table(conditions))
    np.savez(folder / "data.npz", x=np.zeros((4, *IMAGE), np.float32), y=np.arange(4) % 2)
    np.savez_compressed(
        folder / "packed.npz", x=np.zeros((4, *IMAGE), np.float32), y=np.arange(4) % 2
    )
    np.savez(folder / "text.npz", **TEXT)
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
        ".h5": (folder / "m.h5", utils.load_keras),
        ".weights.h5": (folder / "m.weights.h5", lambda path: h5_files.load_weights_(model, path)),
        ".npz with text": (folder / "text.npz", read_arrays),
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


def read_arrays(path):
    """Reads an .npz file as `ekg prune` does, and its first examples."""
    examples, _ = own.load(path, IMAGE)
    read_data(examples)


def read_data(examples):
    """Reads data as ekg.prune does, and its first examples."""
    data = make_data(small_jobs.build(None, 2), examples, task="auto")
    images = data.normalise(data.train.read(np.arange(2)))
    assert np.isfinite(images).all() and images.shape[1:] == IMAGE


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


def strange_array(array, rng):
    """Returns an array of another type, shape or content, or something that is no array."""
    size = array.size
    strange = [
        lambda: array.astype(str),
        lambda: array.astype("S4"),
        lambda: array.astype(object),
        lambda: array.astype(complex),
        lambda: array.astype(np.float16),
        lambda: array.astype(">f8"),
        lambda: array.astype("M8[s]"),
        lambda: array > 0,
        lambda: np.zeros(len(array), [("a", "f4"), ("b", "U3")]),
        lambda: np.where(rng.random(array.shape) < 0.01, np.nan, array),
        lambda: array * 1e38 * 10,
        lambda: array.astype(np.int64) - 2**62,
        lambda: array.astype(np.int64) + 2**31,
        lambda: -array - 1,
        lambda: array[:0],
        lambda: array[..., None],
        lambda: array[:, None],
        lambda: array[0],
        lambda: array.reshape(-1),
        lambda: np.array(5),
        lambda: array[:-1],
        lambda: array[::-1],
        lambda: np.asfortranarray(array),
        lambda: np.ma.masked_array(array, rng.random(array.shape) < 0.5),
        lambda: np.broadcast_to(array[:1], (10**9, *array.shape[1:])),
        lambda: np.array(["\x00", "\ud7ff", "", "b" * 999])[np.arange(size) % 4],
        lambda: None,
        lambda: "text",
        lambda: list(array),
        lambda: [None] * len(array),
        lambda: {"a": array},
        lambda: {"a": {"b": array}},
        lambda: {"a": array, "b": array},
        lambda: {1: array},
        lambda: [array, array],
        lambda: (array,),
    ]
    try:
        return strange[int(rng.integers(len(strange)))]()
    except (TypeError, ValueError):  # these values have no such form
        return array


def damage_named(count, rng):
    """Returns {"refused", "read"}: what became of so many pairs of named inputs and labels."""
    result = {"refused": 0, "read": 0}
    for _ in range(count):
        arrays = dict(NAMED)
        for name in rng.permutation(list(arrays))[: int(rng.integers(1, 3))]:
            arrays[name] = strange_array(arrays[name], rng)
        labels = arrays.pop("y")
        if rng.random() < 0.2:
            arrays["more"] = strange_array(NAMED["y"], rng)
        examples = (arrays, labels) if rng.random() < 0.8 else (arrays, labels, labels)
        try:
            read_data(examples)
            result["read"] += 1
        except EkgError as error:
            check_line(error, "`")
            result["refused"] += 1
    return result


def changed_arrays(data, rng):
    """Returns an .npz file in which an array has another type, shape or content."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = rng.choice(list(arrays))
    arrays[name] = strange_array(arrays[name], rng)
    with contextlib.suppress(ValueError):  # what no file can hold
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: plain(value) for name, value in arrays.items()})
        return buffer.getvalue()
    return data


def plain(value):
    """Returns an array that an .npz file can hold without pickle, and that is small."""
    array = np.asarray(value)
    if array.dtype.hasobject or array.size > 10**6:
        raise ValueError
    return array


WAYS = {"bytes": mutate, "content": changed_json, "nesting": nested_json}
WAYS_OF_ARRAYS = {"bytes": mutate, "arrays": changed_arrays}


def check_line(error, *places):
    """Raises AssertionError unless an error is one line that names one of these places; a
    backtick begins the name of an argument.
    """
    text = str(error)
    if not text.isprintable() or not any(place in text for place in places):
        raise AssertionError(f"not one line that names {places}: {text!r}") from error


def damage(path, read, count, rng, way="bytes"):
    """Returns {"refused", "read"}: what became of so many damaged files.

    Args:
        path: pathlib.Path of a good file.
        read: function of the path that reads it; returns, or raises EkgError.
        count: of damaged files.
        rng: numpy.random.Generator.
        way: one of WAYS; "content" and "nesting" are for files of JSON, "arrays" is for .npz.
    """
    good, result = path.read_bytes(), {"refused": 0, "read": 0}
    read(path)
    for _ in range(count):
        path.write_bytes((WAYS | WAYS_OF_ARRAYS)[way](good, rng))
        try:
            read(path)
            result["read"] += 1
        except EkgError as error:
            check_line(error, str(path.parent), "`")
            result["refused"] += 1
        except Exception as error:
            shutil.copy(path, Path(tempfile.gettempdir()) / f"damaged-{path.name}")
            raise AssertionError(f"{path.name}: {type(error).__name__}: {error}") from error
    path.write_bytes(good)
    read(path)
    return result


def ways_of(path):
    """Returns the names of the ways in which a file can be damaged."""
    if path.suffix in (".json", ".jsonl"):
        return list(WAYS)
    return list(WAYS_OF_ARRAYS) if path.suffix == ".npz" else ["bytes"]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Damage every kind of file that is read.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (path, read) in write_all(Path(folder)).items():
            if not args.kinds or kind in args.kinds:
                for way in ways_of(path):
                    rng = np.random.default_rng(args.seed)
                    with Peak() as peak:
                        result = damage(path, read, args.count, rng, way)
                    result |= {"peak_mib": round(peak.host_mib)}
                    print(json.dumps({"kind": kind, "way": way} | result), flush=True)
    if not args.kinds or NAMED_KIND in args.kinds:
        result = damage_named(args.count, np.random.default_rng(args.seed))
        print(json.dumps({"kind": NAMED_KIND} | result), flush=True)


if __name__ == "__main__":
    main()

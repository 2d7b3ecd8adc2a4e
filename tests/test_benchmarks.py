"""What the speed pages are made of; no speed itself is tested."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from benchmarks import (
    agreement,
    bench_gpu,
    goals,
    growth,
    keras_hub,
    kinds,
    load,
    own_network,
    packaged,
    performance,
)
from ekg import search
from ekg.io import files
from ekg.network.supernet import Supernet
from ekg.searching.settings import SearchSettings
from tests.helpers.models import make_data, make_tiny_resnet


def test_a_slope_is_that_of_the_logarithms():
    assert growth.Curve("images", [1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]).slope == pytest.approx(1)
    assert growth.Curve("width", [1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0]).slope == pytest.approx(2)
    assert growth.Curve("images", [1, 10], [5.0, 5.0 * math.sqrt(10)]).slope == pytest.approx(0.5)


def phase(name, before, after, count=0, work=5e9, unit="s"):
    return {
        "name": name,
        "work": work,
        "count": count,
        "unit": unit,
        "before": before,
        "after": after,
    }


def test_a_page_of_two_revisions_shows_ratios_and_shares_of_the_peak(tmp_path):
    curves = [{"name": "images", "counts": [1, 2], "seconds": [1.0, 2.0]}]
    phases = [
        phase(
            "peak", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], work=5e9
        ),  # 5 G multiply-accumulates a second
        phase(
            "search step 8, 3 candidates", [4.0, 8.0, 3.0], [2.0, 2.0, 2.0]
        ),  # ratios 2, 4 and 1.5
        phase("memory bank", [4.0] * 3, [2.0] * 3, 100, unit="rows/s"),
        phase("small run on DIGITS: whole", [40.0], [20.0], work=None),
    ]
    record = {
        "arch": "ResNet-56",
        "before": "a" * 40,
        "phases": phases,
        "growth": curves,
        "growth_of": "c" * 40,
        "after": {"revision": "b" * 40, "machine": {"processor": "a machine"}, "cores": 2},
    }
    page = performance.markdown(record)
    assert "| search step 8, 3 candidates | 4.0 s | 2.0 s | 2.00 | 0.25 | 0.50 |" in page
    assert "| memory bank | 25 rows/s | 50 rows/s | 2.00 | 0.25 | 0.50 |" in page
    assert "| small run on DIGITS: whole | 40.0 s | 20.0 s | 2.00 |  |  |" in page
    assert "aaaaaaa and bbbbbbb, ran in turn on one machine (a machine, 2 cores)" in page
    assert "Revision ccccccc. Seconds" in page
    assert (
        "matrix product, 10 GFLOP/s" in page and "| images | 1 to 2 | 1.00 to 2.00 | 1.00 |" in page
    )
    performance.write_page(tmp_path, record)
    performance.add_rows(
        tmp_path, "agreement", "ResNet-8 on DIGITS:", [["bfloat16", 17, "88.2%", "70.6%"]]
    )
    assert (
        "\nResNet-8 on DIGITS:\n\n| format | steps | same group | same sub-network "
        "|\n|---|---|---|---|\n"
        "| bfloat16 | 17 | 88.2% | 70.6% |\n"
    ) in (tmp_path / "performance.md").read_text()
    argv = [
        "--arch",
        "ResNet-8",
        "--formats",
        "bfloat16",
        "--compile",
        "off",
        "--batch_size",
        "4",
        "--images",
        "8",
        "--candidates",
        "2",
        "--bank_images",
        "8",
        "--peak_size",
        "64",
        "--runs",
        "1",
        "--json",
        str(tmp_path / "gpu.json"),
        "--out",
        str(tmp_path),
    ]
    bench_gpu.main(bench_gpu.parse_args(argv))
    page = (tmp_path / "performance.md").read_text()
    assert page.count("| bfloat16 | off | ") == 3  # training, search, bank
    assert (
        "8 views a training step, D_val of 8 images, a bank of 8 images and 5 teachers, medians "
        "of 1:" in page
    )
    measured = files.read_json(tmp_path / "gpu.json")
    assert len(measured["rows"]) == 3 and measured["rows"][0]["format"] == "bfloat16"
    assert (
        measured["environment"]["cores"] == measured["origin"]["cores"]
        and measured["versions"]["numpy"]
    )
    with pytest.raises(FileNotFoundError, match="performance.json"):
        bench_gpu.main(bench_gpu.parse_args([*argv[:-1], str(tmp_path / "none")]))
    growth.draw(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_steps_in_float32_equal_the_searchs():
    supernet, data = Supernet(make_tiny_resnet()), make_data()
    settings = SearchSettings(target_rate=0.4, val_per_class=16, search_batch_size=40)
    history = search(supernet, data, settings).history
    batches = data.batches(
        data.last_of_each_class(settings.val_per_class, 0).in_memory(), settings.search_batch_size
    )
    steps = len(history) - 1
    assert (
        agreement.compare(supernet, batches, settings, history, "float32", 0)
        == (steps, steps, steps)
        and steps > 2
    )


def test_a_view_moves_each_image_by_itself():
    images = np.full((4, own_network.SIZE, own_network.SIZE, 3), -1, np.float32)
    images[:, 40:56, 40:56] = 1
    seen = own_network.shifted(images, tf.constant([1, 2])).numpy()
    assert (seen.sum(axis=(1, 2, 3)) == images[0].sum()).all()  # nothing left the picture
    places = [tuple(np.argwhere(image[..., 0] > 0)[0]) for image in seen]
    assert len(set(places)) > 1 and all(28 <= place <= 52 for pair in places for place in pair)


def test_a_benchmarks_baseline_learns_on_moved_images_with_current_statistics(monkeypatch):
    seen = []
    monkeypatch.setattr(
        own_network.keras.Model,
        "fit",
        lambda _, data, **options: seen.append((list(data), options)),
    )
    images = np.full((40, own_network.SIZE, own_network.SIZE, 3), -1, np.float32)
    images[:, 40:56, 40:56] = 1
    model = own_network.train_baseline((images, np.arange(40)), 3, 0)
    ((batches, options),) = seen
    assert options["epochs"] == 3 and sorted(
        np.concatenate([labels for _, labels in batches])
    ) == list(range(40))
    assert (
        len(
            {
                tuple(np.argwhere(image[..., 0] > 0)[0])
                for moved, _ in batches
                for image in moved.numpy()
            }
        )
        > 10
    )
    assert {
        layer.momentum
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    } == {0.9}
    assert model.output_shape == (None, 10)


def test_outputs_are_joined_by_their_ranges_and_split_again():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(2)(inputs), keras.layers.Dense(3, activation="softmax")(inputs)]
    model, x = (
        keras.Model(inputs, outputs),
        np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32),
    )
    ranges = [np.array([2.0, 50.0]), np.array([0.5, 1.0, 0.25])]
    whole = packaged.joined(model, ranges)
    boxes, classes = (np.asarray(value) for value in model(x))
    np.testing.assert_allclose(
        whole(x), np.concatenate([boxes / ranges[0], classes / ranges[1]], axis=1), rtol=1e-5
    )
    for value, expected in zip(packaged.parted(whole, 2)(x), (boxes, classes), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_differences_are_shares_of_each_channels_range():
    whole = [np.array([[0.0, 10.0], [1.0, 30.0]])]
    ranges = packaged.ranges_of(whole)
    (found,) = packaged.compare(whole, [whole[0] + [[0.04, 1.0], [0.06, 5.0]]], ranges)
    np.testing.assert_allclose(ranges[0], [1, 20])
    np.testing.assert_allclose(found["mean"], [0.05, 3 / 20])
    np.testing.assert_allclose(
        found["within"], [0.5, 0.5]
    )  # .04 and 1 of 20 are, .06 and 5 of 20 are not
    assert packaged.agreements(whole, [np.array([[0.0, 1.0], [2.0, 1.0]])]) == [0.5]


def test_a_page_of_load_shows_seconds_slopes_and_the_share_outside_the_network(tmp_path):
    result = {
        "groups": {
            "cut": {"counts": [10, 100, 1000], "seconds": [1.0, 2.0, 20.0], "mib": [0.0, 1.0, 7.4]},
            load.OUTSIDE: {
                "counts": [10, 100],
                "seconds": [0.5, 50.0],
                "mib": [0.0, 0.0],
                "share": [0.5, 0.0625],
                "candidates": [10, 60],
            },
        }
    }
    page = "\n".join(load.markdown(result, "load.png", "abc"))
    assert "| part | 10 groups | 100 groups | 1,000 groups | MiB | slope |" in page
    assert "| cut | 1 | 2 | 20 | 7 | 1.00 |" in page
    assert f"| {load.OUTSIDE} | 0.5 | 50 |  |  | 2.00 |" in page
    assert "With 100 groups, 60 candidates and 8 images, 6.2% of a search step's CPU time" in page
    assert "Not run: 125, 250, 500 groups." in page
    load.draw(result, tmp_path / "load.png")
    assert min(Image.open(tmp_path / "load.png").size) > 300


def test_load_measures_parts_of_a_job():
    parts = load.Parts()
    load.measure_examples(parts, 200, None)
    assert {"data and labels", "memory bank", "evaluation"} < set(parts.measured)
    for values in parts.measured.values():
        assert values["seconds"] > 0 and values["mib"] >= 0


# ---------------------------------------------------------------- networks of several kinds


def test_all_kinds_of_networks_can_keep_less_than_half_of_their_flops():
    images = np.zeros((2, 8, 8, 1), np.float32)
    for make, inputs_of in kinds.KINDS.values():
        model = make()
        assert model(inputs_of(images)).shape == (2, 10)
        supernet = Supernet(model)
        assert supernet.rate(supernet.smallest()) < 0.1


def test_the_table_of_kinds_has_means_spreads_and_the_greatest_difference():
    def row(seed, after, share):
        exports = {"litert": (1, share, 1.0), "onnx": ("any", 2e-7, 1.0)}
        ratios = {"litert, batch 1, 1 thread": 0.4 + seed / 10}
        return kinds.Row("net", seed, 0.49, 0.5, 0.98, 0.9, after, 0.5, 0.95, exports, ratios)

    *_, line = kinds.table([row(0, 0.97, 1e-6), row(1, 0.99, 3e-6)]).splitlines()
    assert line.startswith(
        "| net | 2 | 0.490, 0.500 | 98.00 ± 0.00 | 90.00 ± 0.00 | 98.00 ± 1.41 |"
    )
    assert line.endswith("| 3e-06, 2e-07 | 1, any | 0.45 |")


def test_a_row_of_a_kerashub_network_shows_the_largest_differences_or_the_reason():
    right = {
        "network": "vit",
        "groups": 7,
        "smallest_rate": 0.0054,
        "cut_inference": 1e-7,
        "cut_training": 3e-7,
        "reloaded_inference": 1e-7,
        "reloaded_training": 2e-7,
        "closed": {"mix": "read by it", "classifier": "output of the network"},
    }
    found = ("vit", 7, "0.0054", "1e-07", "3e-07", "2e-07")
    assert keras_hub.as_cells(right) == (*found, 1)
    compared = [name for names in keras_hub.COMPARED for name in names]
    wrong = {key: value for key, value in right.items() if key not in compared}
    assert keras_hub.as_cells(wrong | {"wrong": "it differs"})[3:] == ("–", "–", "–", "it differs")
    refused = keras_hub.as_cells({"network": "vit", "refused": "nothing; and 3 more"})
    assert refused == ("vit", *["–"] * 5, "nothing")


def test_weights_of_a_benchmark_are_random_except_for_integer_counters():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="dense")(keras.layers.BatchNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dropout(0.5, seed=1)(x))
    seeds = [np.array(w) for w in model.weights if w.dtype == "uint32"]
    keras_hub.randomise_(model, 0)
    assert all(np.unique(w).size > 1 for w in model.weights if w.dtype == "float32")
    variance = next(w for w in model.weights if w.name == "moving_variance")
    assert np.min(variance) > 0
    after = [np.array(w) for w in model.weights if w.dtype == "uint32"]
    assert all((a == b).all() for a, b in zip(after, seeds)) and len(after) == len(seeds)


# ---------------------------------------------------------------- accuracy goals


def test_networks_with_accuracy_goals_take_the_digits_and_can_be_pruned():
    images = np.zeros((2, 8, 8, 1), np.float32)
    for make, inputs_of in goals.NETWORKS.values():
        model = make()
        assert model(inputs_of(images)).shape == (2, 10)
        supernet = Supernet(model)
        assert supernet.rate(supernet.smallest()) < 0.1


def test_a_goal_is_met_within_its_tolerance_beyond_the_standard_error():
    row = goals.Row("net", 0, 0.451, "", 0.98, (0.0119, 0.0, 287), (0.0331, 0.02, 360))
    assert row.is_met(0.01) == [True, False]  # 1.19 <= 1.3, and 3.31 > 1.3 + 2
    *_, line = goals.table([row], 0.01).splitlines()
    assert line == "| net | 0 | 0.451 | 98.00 | 1.19 ±0.00 (287) | yes | 3.31 ±2.00 (360) | no |"


def test_jobs_with_accuracy_goals_that_are_done_are_not_repeated(tmp_path, monkeypatch, capsys):
    def run(name, seed, args):
        return goals.Row(name, seed, 0.5, "", 0.9, (0.0, 0.01, 287), (0.0, 0.01, 360))

    args = goals.parse_args(["--seeds", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(goals, "run", run)
    rows = goals.main(args)
    monkeypatch.setattr(goals, "run", None)
    assert goals.main(args) == rows and len(rows) == 3
    assert capsys.readouterr().out.count("| resnet-20 | 0 | 0.500 |") == 2

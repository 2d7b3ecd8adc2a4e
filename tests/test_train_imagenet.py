"""The ImageNet scripts as a user runs them, on a handful of pictures."""

import numpy as np
import pytest
from PIL import Image

import dataloader
import nets
import test as test_script
import train_imagenet
import utils
from ekg.data.dataset import Batches, mixed_order
from ekg.distil import bank
from ekg.errors import EkgError
from ekg.io import files
from ekg.network.supernet import Supernet
from ekg.report import measure
from ekg.run.folder import RunFolder

CLASSES = ("n01440764", "n02101006", "n09193705")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("ILSVRC2012"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, wnid in enumerate(CLASSES):
            (folder / split / wnid).mkdir(parents=True)
            for i in range(count):
                picture = rng.integers(0, 120, (240, 300, 3)) + 120 * (np.arange(3) == label)
                Image.fromarray(picture.astype(np.uint8)).save(
                    folder / split / wnid / f"{split}_{label}{i}.JPEG"
                )
    return folder


def arguments(pictures, folder, *more):
    return train_imagenet.parse_args(
        [
            "--arch",
            "ResNet-18",
            "--data_path",
            str(pictures),
            "--train_path",
            str(folder),
            "--target_rate",
            "0.93",
            "--search_step",
            "0.5",
            "--subset_per_class",
            "2",
            "--val_per_class",
            "1",
            "--batch_size",
            "4",
            "--val_batch_size",
            "4",
            "--search_batch_size",
            "4",
            "--train_epoch",
            "1",
            "--num_teacher",
            "2",
            "--no-preflight",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "BATCHES", (1, 2))
        patch.setattr(measure, "LEAST_SECONDS", 0.05)
        return folder, train_imagenet.main(
            arguments(
                pictures,
                folder,
                "--baseline_epoch",
                "1",
                "--warmup_epoch",
                "1",
                "--label_smoothing",
                "0.1",
                "--runtimes",
                "tensorflow",
            )
        )


def test_a_run_prunes_and_leaves_everything(finished):
    folder, (baseline, slimmed, tuned) = finished
    assert baseline.flops == 1_819_040_768 - 997 * 512 and baseline.params == 11_699_112 - 997 * 513
    assert slimmed.flops == tuned.flops <= 0.93 * baseline.flops
    for row in (baseline, slimmed, tuned):
        assert (
            0 <= row.top1 <= 1 and np.isfinite(row.loss) and "top5" not in row.metrics
        )  # of three classes
    logits = bank.open_bank(folder / "memory_bank").logits
    assert logits.shape == (12, 2, 3) and np.ptp(logits, axis=0).min() > 0
    assert files.read_json(folder / "arguments.json")["temperature"] == 10
    assert {line["phase"] for line in files.read_json_lines(folder / "curves.jsonl")} == {
        "baseline",
        "subset",
        "search",
        "fine-tune",
    }


def test_the_bank_holds_the_evaluation_views_of_every_image(finished, pictures):
    """Of the one batch of even size that each image belongs to: 12 images in batches of at most
    4.
    """
    folder, _ = finished
    data = dataloader.load("ILSVRC2012", pictures)
    supernet = Supernet(
        nets.from_params("ResNet-18", utils.load_params(folder / "supernet_param.pkl"), 3)
    )
    history = RunFolder.open(folder).history()
    batches = Batches(data.train, data.normalise, 4, mixed_order(data.train.labels))
    memory_bank = bank.open_bank(folder / "memory_bank", batches)
    for k, teacher in enumerate(files.read_json(folder / "memory_bank" / "bank.json")["teachers"]):
        for indices in batches.indices:
            images = data.normalise(data.train.read(indices))
            expected = supernet.logits(images, history[teacher["step"]].subnetwork)
            np.testing.assert_allclose(
                memory_bank.rows(indices)[:, k], expected, rtol=1e-3, atol=1e-4
            )


def test_the_evaluation_script_returns_the_tables_row(finished, pictures, monkeypatch, capsys):
    folder, rows = finished
    monkeypatch.setattr(measure, "BATCHES", (1, 2))
    row = test_script.main(
        test_script.parse_args(
            [
                "--arch",
                "ResNet-18",
                "--dataset",
                "ILSVRC2012",
                "--data_path",
                str(pictures),
                "--trained_param",
                str(folder / "trained_param.pkl"),
                "--val_batch_size",
                "4",
            ]
        )
    )
    assert (row.loss, row.top1, row.params, row.flops) == (
        rows[2].loss,
        rows[2].top1,
        rows[2].params,
        rows[2].flops,
    )
    assert "images/s" in capsys.readouterr().out


def test_the_bank_of_another_run_is_refused_and_kept(finished, pictures, tmp_path):
    """Put into a run of other teachers, before its own bank is built."""
    folder, _ = finished
    (tmp_path / "memory_bank").mkdir()
    for name in (
        "arguments.json",
        "baseline_param.pkl",
        "supernet_param.pkl",
        "slimmed_param.pkl",
        "history.jsonl",
        "phases.jsonl",
        "memory_bank/logits.npy",
    ):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    info = files.read_json(folder / "memory_bank" / "bank.json")
    files.write_json(tmp_path / "memory_bank" / "bank.json", info | {"network": "0" * 64})
    args = arguments(
        pictures,
        tmp_path,
        "--baseline_epoch",
        "1",
        "--warmup_epoch",
        "1",
        "--label_smoothing",
        "0.1",
    )
    with pytest.raises(
        EkgError, match="memory_bank: this memory bank belongs to another run, its network differ"
    ):
        train_imagenet.main(args)
    for name in ("memory_bank/logits.npy", "arguments.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--val_per_class", "5"], "5 images of each class are asked for"),
        (["--subset_per_class", "9"], "9 images of each class are asked for"),
        (["--batch_size", "16"], "`batch_size` 16 is larger than the 12 images"),
        (["--trained_param", "nowhere.pkl"], "nowhere.pkl: cannot be read"),
        (["--data_path", "/nowhere"], "`data_path` /nowhere: holds no folder train/"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(pictures, tmp_path, more, message):
    with pytest.raises(EkgError, match=message):
        train_imagenet.main(arguments(pictures, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arch", "ResNet-56"], "invalid choice"),
        (["--dataset", "CIFAR10"], "invalid choice"),
        (["--label_smoothing", "1"], "--label_smoothing must be in [0, 1); received 1."),
        (["--temperature", "0"], "--temperature must be positive; received 0."),
        (["--warmup_epoch", "-1"], "--warmup_epoch must be 0 or more; received -1."),
        (["--image_memory", "-1"], "--image_memory must be 0 or more; received -1."),
        (
            ["--finetune_teacher", "none", "--temperature", "3"],
            "--temperature has no effect here: nothing is distilled",
        ),
        (
            ["--finetune_teacher", "none", "--temperature", "4"],
            "--temperature has no effect here: nothing is distilled",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_the_parser(capsys, more, message):
    with pytest.raises(SystemExit) as exit_info:
        train_imagenet.parse_args(["--data_path", "somewhere", *more])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_the_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        train_imagenet.parse_args([])
    assert "the following arguments are required: --data_path" in capsys.readouterr().err


def test_skipping_images_is_refused_where_there_are_no_files(capsys):
    with pytest.raises(SystemExit):
        test_script.parse_args(
            ["--dataset", "DIGITS", "--trained_param", "p.pkl", "--skip_bad_images"]
        )
    assert "--skip_bad_images has no effect here" in capsys.readouterr().err

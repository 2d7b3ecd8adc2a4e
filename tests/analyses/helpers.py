"""What the tests of the analyses share."""

import dataclasses

from PIL import Image

import analyze
import ekg
import nets
import utils
from ekg.io import files
from ekg.report.table import Row
from ekg.run import folder as names
from ekg.run.folder import RunFolder

DIGITS = ["--arch", "ResNet-8", "--dataset", "DIGITS"]
SPECTRUM = {
    "largest",
    "smallest",
    "residual_largest",
    "residual_smallest",
    "products",
    "converged",
    "parameters",
    "batch_statistics",
    "num_images",
    "former_norms",
}


def run_analysis(*argv):
    return analyze.main(analyze.parse_args([str(value) for value in argv]))


def cells(line):
    """Returns the cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def picture_size(path):
    return Image.open(path).size


def make_supernet(params):
    """Returns the Supernet of the first network of the fixture `params`."""
    return ekg.Supernet(nets.from_params("ResNet-8", utils.load_params(params / "one.pkl"), 10))


def make_run(path, params, top1=0.9, **arguments):
    """Writes the folder of a finished run and returns its path."""
    folder = RunFolder.create(
        path,
        {
            "arch": "ResNet-8",
            "dataset": "CIFAR10",
            "search_teacher": "ensemble",
            "finetune_teacher": "none",
            "criterion": "ekg",
            "target_rate": 0.45,
            "train_epoch": 1,
            "trained_param": "x",
        }
        | arguments,
    )
    supernet = make_supernet(params)
    whole = supernet.whole()
    last = whole.with_widths({group.name: 0.5 for group in supernet.groups})
    for step, (subnetwork, loss) in enumerate(((whole, 0.1), (last, 0.2))):
        folder.append_history(
            ekg.HistoryEntry(
                step,
                None if step == 0 else "conv",
                subnetwork,
                supernet.rate(subnetwork),
                loss,
                0.9,
                -loss,
                3,
                1.5,
            )
        )
    for phase in ("baseline", "fine-tune"):
        files.append_json_line(
            folder / names.CURVES,
            {"phase": phase, "step": 1, "loss": 0.5, "top1": 0.8, "val_top1": 0.7},
        )
    utils.save_params(supernet.model, folder / names.SUPERNET)
    utils.save_params(supernet.cut(last), folder / names.SLIMMED)
    rows = [
        Row(
            name,
            loss=0.3,
            metrics={"top1": value, "top5": 1.0},
            params=1000,
            flops=flops,
            file_size=10,
        )
        for name, value, flops in (
            ("baseline", 0.95, 1000),
            ("slimmed", 0.5, 450),
            ("fine-tuned", top1, 450),
        )
    ]
    files.write_json(
        folder / names.SUMMARY,
        {
            "table": [dataclasses.asdict(row) for row in rows],
            "phases": {
                name: {"seconds": 1800.0, "peak_memory_mib": 1} for name in ("search", "fine-tune")
            },
        },
    )
    return folder.path

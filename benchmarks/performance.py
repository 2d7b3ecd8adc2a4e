"""Every phase of a run before and after a change, timed in turn, and how its cost grows; writes docs/performance.md.

    python -m benchmarks.performance --before CHECKOUT --trained_param resnet56.pkl --data_path cifar-10-batches-py \
        --history history.jsonl --out docs

CHECKOUT is another checkout of this repository, at the revision to compare with. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import numpy as np
from benchmarks import growth
from ekg import files
from ekg.run.arguments import origin

HERE = Path(__file__).resolve().parent.parent
START_COMMAND = ("train_cifar.py", "--dataset", "DIGITS", "--arch", "ResNet-20", "--target_rate", "0.8",
                 "--baseline_epoch", "1", "--train_epoch", "1", "--batch_size", "16", "--search_step", "0.5")
NAMES, PICTURE = "performance.json", "growth.png"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Compare the speed of two revisions.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier revision")
    parser.add_argument("--trained_param", type=Path, required=True)
    parser.add_argument("--data_path", type=Path, required=True, help="CIFAR-10")
    parser.add_argument("--history", type=Path, required=True, help="history.jsonl of a search of that network")
    parser.add_argument("--arch", default="ResNet-56")
    parser.add_argument("--rounds", type=int, default=2, help="times each revision is measured, in turn")
    parser.add_argument("--growth", action=argparse.BooleanOptionalAction, default=True, help="measure growth, too")
    parser.add_argument("--out", type=Path, default=HERE / "docs")
    return parser.parse_args(argv)


def measure(args, checkout):
    """Returns what benchmarks/phases.py finds with the code of a checkout, and the seconds of a small run's phases."""
    command = [sys.executable, str(HERE / "benchmarks" / "phases.py"), "--arch", args.arch]
    for name in ("trained_param", "data_path", "history"):
        command += [f"--{name}", str(getattr(args, name).resolve())]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=checkout)  # noqa: S603
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{checkout}: {done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT ")) | {"small run": small_run(checkout)}


def small_run(checkout):
    """Returns the seconds of a small run on DIGITS with the code of a checkout, whole and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        command, start = [sys.executable, *START_COMMAND, "--train_path", f"{folder}/run"], time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=checkout)  # noqa: S603
        whole = time.perf_counter() - start
        phases = {line["phase"]: line["seconds"] for line in files.read_report_lines(Path(folder) / "run" / "phases.jsonl")}
        steps = files.read_json_lines(Path(folder) / "run" / "history.jsonl")
    return {"whole": whole, "report": phases["report"], "without": whole - sum(phases.values()), "phases": phases,
            "first step": steps[0]["seconds"]}


def middle(results, *path):
    """Returns the median of one figure of several results."""
    values = []
    for result in results:
        for key in path:
            result = result[key]
        values.append(result)
    return statistics.median(values)


def table(before, after):
    """Returns the rows [what, before, after, ratio, share of peak before, after] of a pair of lists of results."""
    rows = []

    def add(name, path, unit, per_second=None):
        times = [middle(results, *path, "seconds") for results in (before, after)]
        shares = [2 * middle(results, *path, "work") / spent / middle(results, "peak")
                  for results, spent in zip((before, after), times)]
        shown = [f"{spent:.2f} s" if per_second is None else f"{per_second / spent:,.0f} {unit}" for spent in times]
        rows.append([name, *shown, f"{times[0] / times[1]:.2f}", *(f"{share:.2f}" for share in shares)])

    for number, step in enumerate(after[0]["search"]):
        add(f"search step {step['step']}, {step['candidates']} candidates", ("search", number), "s")
    add("training the unpruned network, one view", ("baseline",), "images/s", after[0]["baseline"]["images"])
    add("fine-tuning the pruned network, two views", ("fine-tune",), "views/s", after[0]["fine-tune"]["images"])
    add("memory bank", ("bank",), "rows/s", after[0]["bank"]["images"])
    for name, key in (("small run on DIGITS, whole", "whole"), ("its start: all outside its phases", "without"),
                      ("its report", "report")):
        times = [middle(results, "small run", key) for results in (before, after)]
        rows.append([name, *(f"{spent:.1f} s" for spent in times), f"{times[0] / times[1]:.2f}", "", ""])
    return rows


def markdown(record):
    """Returns the page of a record."""
    head = ["what", "before", "after", "times as fast", "share of peak before", "share of peak after"]
    rows = [head, ["---"] * len(head), *table(record["before"]["results"], record["after"]["results"])]
    now = record["after"]["origin"]
    machine, cores = now["machine"]["processor"], now["cores"]
    lines = ["# Speed", "", "Made by `python -m benchmarks.performance`; the figures are in "
             f"[{NAMES}]({NAMES}). Two revisions of the code, {record['before']['revision'][:7]} and "
             f"{(now['revision'] or 'unknown')[:7]}, ran in turn on one machine ({machine}, "
             f"{cores} cores), {len(record['after']['results'])} times each; medians. {record['arch']} on "
             "CIFAR-10 in float32. The peak is that of a float32 matrix product, "
             f"{middle(record['after']['results'], 'peak') / 1e9:.0f} GFLOP/s. A search step counts its "
             "multiply-accumulates as if nothing were masked; fine-tuning and the bank count those of the cut networks.", "",
             *("| " + " | ".join(row) + " |" for row in rows), ""]
    if record.get("growth"):
        lines += growth.markdown(record["growth"], PICTURE)
    return "\n".join([*lines, *NOT_RUN])


NOT_RUN = ("## Not run", "",
           "On GPUs nothing of this was measured. `python -m benchmarks.bench_gpu` prints the table of a card: training "
           "step, search step and bank, with and without XLA, in float32, TF32, bfloat16 and float16. bfloat16 was not "
           "measured here: the processor has no instructions for it.", "")


def main(args):
    results = {"before": [], "after": []}
    for _ in range(args.rounds):
        for name, checkout in (("before", args.before), ("after", HERE)):
            results[name].append(measure(args, checkout))
            print(name, json.dumps(results[name][-1]), flush=True)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=args.before, capture_output=True, text=True)  # noqa: S603,S607
    record = {"arch": args.arch, "before": {"revision": revision.stdout.strip() or "unknown", "results": results["before"]},
              "after": {"origin": origin(), "results": results["after"]}}
    if args.growth:
        record["growth"] = growth.measure()
        growth.draw(record["growth"], args.out / PICTURE)
    files.write_json(args.out / NAMES, record)
    files.write_whole(args.out / "performance.md", lambda file: file.write(markdown(record).encode()))
    print(np.array2string(np.array(table(record["before"]["results"], record["after"]["results"])), max_line_width=200))


if __name__ == "__main__":
    utils.run_script(main, parse_args)

"""The analyses of the paper, one sub-command each; every one writes numbers (JSON, CSV), a picture and a line of text.

    python analyze.py run runs/ResNet-56_CIFAR10_0.45                       # a run as a page of pictures
    python analyze.py condition resnet56.pkl --arch ResNet-56               # smoothness of the loss at a network
    python analyze.py landscape a.pkl b.pkl --arch ResNet-56                # loss surfaces side by side
    python analyze.py correlation --trained_param resnet20.pkl --arch ResNet-20 --subnetworks 10
    python analyze.py criteria --trained_param resnet56.pkl --arch ResNet-56 -- --train_epoch 1
    python analyze.py ablation --trained_param resnet56.pkl --arch ResNet-56 --seeds 0 1 2
    python analyze.py tables runs/*

The same command again goes on where it stopped. What stands behind `--` goes to train_cifar.py as it is.
"""

import argparse
import csv
import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import numpy as np
import op_utils
from dataloader import cifar
from ekg import analysis, devices, figures, greedy_search, importance, landscape, losses, memory_bank, training
from ekg.graph import Graph
from ekg.objective import Objective
from ekg.run_folder import RunFolder
from ekg.supernet import Supernet

logger = logging.getLogger("ekg.analyze")

EXIT_NOT_CONVERGED = 3
IMAGES = ("val", "subset", "test")
ROOT = Path(__file__).parent


def parse_args(argv=None):
    """Returns the checked arguments."""
    argv = sys.argv[1:] if argv is None else list(argv)
    argv, rest = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name, text, *groups):
        command = commands.add_parser(name, help=text, description=text,
                                      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for group in groups:
            group(command)
        return command

    command = add("condition", "extreme eigenvalues of the loss's Hessian and the condition number", _network_flags,
                  _image_flags, _spectrum_flags)
    command.add_argument("params", nargs="+", type=Path, help="parameter files")
    command.add_argument("--parameters", default="kernels", choices=landscape.PARAMETERS, help="of the Hessian")
    command = add("landscape", "loss surfaces along two filter-normalised directions", _network_flags, _image_flags)
    command.add_argument("params", nargs="+", type=Path, help="parameter files")
    command.add_argument("--grid", type=int, default=15, help="points along each direction, an odd number")
    command.add_argument("--span", type=float, default=1.0, help="how far the grid goes, in multiples of the filters' norms")
    command = add("correlation", "random sub-networks: loss and condition number before, loss after fine-tuning",
                  _network_flags, _trained_flags, _spectrum_flags)
    command.add_argument("--subnetworks", type=int, default=50, help="how many")
    command.add_argument("--train_epoch", type=int, default=1, help="epochs of fine-tuning, labels alone")
    command = add("criteria", "prune with each criterion", _network_flags, _trained_flags, _spectrum_flags)
    command.add_argument("--criteria", nargs="+", default=list(importance.CRITERIA), choices=list(importance.CRITERIA))
    command = add("ablation", "search teacher x fine-tuning teacher", _network_flags, _trained_flags)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of every row for each")
    command = add("run", "a finished run as a page of pictures in its folder")
    command.add_argument("folder", type=Path, help="run folder")
    command = add("tables", "Markdown tables of finished runs next to the published figures")
    command.add_argument("folders", nargs="+", type=Path, help="run folders")
    command.add_argument("--out", type=Path, help="folder for tables.md; without it the tables are printed alone")
    args = parser.parse_args(argv)
    args.rest = rest
    if rest and args.command not in ("criteria", "ablation"):
        parser.error(f"{args.command} starts no runs: {' '.join(rest)} has no effect; leave it out.")
    for name in ("grid", "subnetworks", "train_epoch", "max_products", "batch_size"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be at least 1; received {getattr(args, name)}.")
    if args.command == "landscape" and args.grid % 2 == 0:
        parser.error(f"--grid must be odd, so that its middle is the network; received {args.grid}.")
    if hasattr(args, "out") and args.out is None and args.command != "tables":
        args.out = Path("analysis") / args.command
    return args


def _network_flags(command):
    command.add_argument("--arch", default="ResNet-56", choices=nets.archs_for(cifar.IMAGE_SHAPE), help="network")
    command.add_argument("--dataset", default="CIFAR10", choices=dataloader.names_for(cifar.IMAGE_SHAPE), help="data set")
    command.add_argument("--data_path", help="as of train_cifar.py")
    command.add_argument("--out", type=Path, help="folder of the results; without it analysis/COMMAND")
    command.add_argument("--batch_size", type=int, default=256, help="images that are run together, at most")


def _image_flags(command):
    command.add_argument("--images", default="val", choices=IMAGES,
                         help="D_val, the training subset of the search, or the test images")
    command.add_argument("--batch_statistics", action="store_true",
                         help="batch norms take the statistics of the batch, as in the search; else the moving ones")


def _trained_flags(command):
    command.add_argument("--trained_param", type=Path, required=True, help="parameter file of the trained network")
    command.add_argument("--target_rate", type=float, default=0.45, help="share of the FLOPs to keep")


def _spectrum_flags(command):
    command.add_argument("--tolerance", type=float, default=landscape.TOLERANCE,
                         help="of the residual of an eigenvalue, as a share of it")
    command.add_argument("--max_products", type=int, default=landscape.MAX_PRODUCTS, help="Hessian-vector products, at most")


def _spectrum_options(args):
    return {"tolerance": args.tolerance, "max_products": args.max_products}


# ---------------------------------------------------------------- what the commands share

def load_data(args):
    """Returns (Dataset, split that --images names)."""
    data = dataloader.load(args.dataset, args.data_path)
    count = {"val": greedy_search.VAL_PER_CLASS, "subset": greedy_search.SUBSET_PER_CLASS}
    name = getattr(args, "images", "val")
    if name == "test":
        return data, data.test
    take = data.last_of_each_class if name == "val" else data.first_of_each_class
    return data, take(min(count[name], data.smallest_class()), 0)


def load_networks(args, data):
    """Returns {name: keras.Model} of the parameter files.

    Raises:
        utils.UserError: a file does not fit; networks of other classes are named.
    """
    models = {}
    for path in args.params:
        params = utils.load_params(path)
        classes = params["fc/biases:0"].size if "fc/biases:0" in params else data.num_classes
        if classes != data.num_classes:
            raise utils.UserError(f"{path}: a network of {classes} classes, and {args.dataset} has {data.num_classes}; "
                                  "compare networks of the same classes.")
        name = path.stem if path.stem not in models else str(path)
        models[name] = nets.from_params(args.arch, params, data.num_classes, path)
    return models


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


def _data_key(split):
    return "".join(memory_bank.fingerprint(split)[name][:16] for name in ("labels", "sample"))


def known_rows(path, key):
    """Returns {row[key]: row} of the lines that an earlier call left."""
    return {row[key]: row for row in utils.read_json_lines(path)} if path.exists() else {}


# ---------------------------------------------------------------- commands

def condition(args):
    """Condition numbers of stored networks; exit code 3 where an eigenvalue is not known to the tolerance."""
    data, split = load_data(args)
    models = load_networks(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    lines, rows = args.out / "conditions.jsonl", []
    for (name, model), path in zip(models.items(), args.params):
        key = "|".join(map(str, (utils.sha256(path), _data_key(split), args.parameters, args.batch_statistics,
                                 args.tolerance, args.max_products, args.batch_size)))
        row = known_rows(lines, "key").get(key)
        if row is None:
            scene = landscape.of_model(model, split, data.normalise, batch_size=args.batch_size, parameters=args.parameters,
                                       batch_statistics=args.batch_statistics)
            with utils.progress_bar(f"eigenvalues of {name}", args.max_products, "product") as progress:
                def show(_, residual, progress=progress):
                    progress.update(1)
                    progress.set_postfix(residual=f"{residual:.3g}")
                spectrum = scene.spectrum(**_spectrum_options(args), on_product=show)
            row = {"key": key, "condition": spectrum.condition, "loss": scene.loss(scene.point)}
            row |= dataclasses.asdict(spectrum)
            utils.append_json_line(lines, row)
        rows.append({"network": name} | {field: value for field, value in row.items() if field != "key"})
    figures.draw_conditions(args.out / "condition.png", [row["network"] for row in rows],
                            [row["condition"] for row in rows])
    text = "; ".join(f"{row['network']}: |λmin/λmax| = |{row['smallest']:.4g} / {row['largest']:.4g}| = "
                     f"{row['condition']:.4f} (residuals {row['residual_smallest']:.2g}, {row['residual_largest']:.2g}, "
                     f"{row['products']} products)" for row in rows)
    write_results(args.out, "condition", rows, text)
    unsure = [row["network"] for row in rows if not row["converged"]]
    if unsure:
        print(f"error: the eigenvalues of {', '.join(unsure)} are not known to the tolerance; raise --max_products. What "
              f"was found is kept in {args.out}.", file=sys.stderr)
        sys.exit(EXIT_NOT_CONVERGED)
    return rows


def draw_landscape(args):
    """Loss surfaces of stored networks on one scale."""
    data, split = load_data(args)
    models = load_networks(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, lines, rows = np.linspace(-args.span, args.span, args.grid), args.out / "surfaces.jsonl", []
    for (name, model), path in zip(models.items(), args.params):
        key = "|".join(map(str, (utils.sha256(path), _data_key(split), args.batch_statistics, args.grid, args.span,
                                 args.batch_size)))
        row = known_rows(lines, "key").get(key)
        if row is None:
            scene = landscape.of_model(model, split, data.normalise, batch_size=args.batch_size,
                                       batch_statistics=args.batch_statistics)
            with utils.progress_bar(f"surface of {name}", args.grid**2, "point") as progress:
                surface = scene.surface(scene.directions(seed=0), steps, lambda progress=progress: progress.update(1))
            row = {"key": key, "surface": surface.tolist()}
            utils.append_json_line(lines, row)
        surface = np.array(row["surface"])
        rows.append({"network": name, "loss": surface[args.grid // 2, args.grid // 2], "lowest": surface.min(),
                     "highest": surface.max(), "surface": row["surface"]})
    figures.draw_surfaces(args.out / "landscape.png", [row["network"] for row in rows], steps,
                          [np.array(row["surface"]) for row in rows])
    text = "; ".join(f"{row['network']}: loss {row['loss']:.4f} at the network, {row['lowest']:.4f} to "
                     f"{row['highest']:.4f} on the grid" for row in rows)
    write_results(args.out, "landscape", rows, text, steps=steps.tolist())
    return rows


def correlation(args):
    """Random sub-networks at a rate: what predicts the loss after fine-tuning?"""
    data, split = load_data(args)
    strategy = devices.make_strategy()
    model = nets.from_params(args.arch, utils.load_params(args.trained_param), data.num_classes, args.trained_param)
    supernet = Supernet(model)
    greedy_search.check_target(supernet, args.target_rate)
    what = {"trained_param": utils.sha256(args.trained_param), "target_rate": args.target_rate, "arch": args.arch,
            "dataset": args.dataset, "train_epoch": args.train_epoch, "batch_size": args.batch_size}
    what |= _spectrum_options(args)
    RunFolder(args.out, what)
    objective = Objective(supernet, split, data.normalise, batch_size=args.batch_size)
    objective.learn(supernet.whole())
    scores = importance.ekg(objective, supernet.whole())
    make = landscape.MaskedLandscapes(supernet, split, data.normalise, batch_size=args.batch_size)
    lines, known = args.out / "history.jsonl", known_rows(args.out / "history.jsonl", "number")
    for number in range(args.subnetworks):
        if number in known:
            continue
        subnetwork = analysis.random_subnetwork(supernet, scores, args.target_rate, np.random.default_rng([7, number]))
        score, spectrum = objective.scores(subnetwork, [(None, subnetwork)])[0], make(subnetwork).spectrum(
            **_spectrum_options(args))
        tuned = tune(args, strategy, data, supernet, subnetwork, args.out / "checkpoints" / f"subnetwork{number}")
        known[number] = {"number": number, "rate": supernet.rate(subnetwork), "val_loss": score.loss,
                         "condition": spectrum.condition, "converged": spectrum.converged, "tuned_loss": tuned.loss,
                         "tuned_top1": tuned.top1}
        utils.append_json_line(lines, known[number])
        logger.info("sub-network %d: validation loss %.4f, condition number %.4f, test loss after fine-tuning %.4f", number,
                    score.loss, spectrum.condition, tuned.loss)
    rows = [known[number] for number in range(args.subnetworks)]
    found = {name: analysis.correlate([row[name] for row in rows], [row["tuned_loss"] for row in rows])
             for name in ("val_loss", "condition")}
    title = (f"{args.arch} on {args.dataset}: {len(rows)} random sub-networks at {args.target_rate:.0%} of the FLOPs, "
             f"{args.train_epoch} epochs of fine-tuning")
    figures.draw_correlation(args.out / "correlation.png", title, rows, found)
    text = (f"{title}: correlation with the loss after fine-tuning: validation loss {found['val_loss']['pearson']:.2f} "
            f"(95 % {_interval(found['val_loss'])}), condition number {found['condition']['pearson']:.2f} "
            f"(95 % {_interval(found['condition'])}); published for 50 sub-networks: 0.32 and 0.73")
    write_results(args.out, "correlation", rows, text, statistics=found)
    return rows


def _interval(found):
    low, high = found["pearson_interval"]
    return f"{low:.2f} to {high:.2f}"


def tune(args, strategy, data, supernet, subnetwork, folder):
    """Returns the test metrics of a sub-network that was cut out and fine-tuned with the labels."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = supernet.cut(subnetwork)
    forward = Graph(model).stateless_call
    edges = op_utils.even_batches(min(10_000, len(data.train)), args.batch_size)
    images = map(data.normalise, data.train.stream([np.arange(*edge) for edge in edges]))
    op_utils.reestimate_statistics_(model, images, forward)
    trainer = op_utils.Trainer(strategy, model, losses.fine_tuning(data, "none", 1.0), weight_decay=5e-4, forward=forward)
    training.fit("fine-tune", trainer, data, op_utils.Schedule(0.01, (0.3, 0.6, 0.8), 0.2, args.train_epoch),
                 batch_size=min(128, len(data.train)), seed=0, folder=RunFolder(folder, {}), num_views=losses.NUM_VIEWS)
    return op_utils.evaluate(strategy, model, data.test, data.normalise, args.batch_size, forward=forward)


def start_run(args, name, *flags):
    """Returns the finished Run of train_cifar.py with these flags, which goes on where it stopped."""
    folder = args.out / "runs" / name
    command = [sys.executable, str(ROOT / "train_cifar.py"), "--arch", args.arch, "--dataset", args.dataset,
               "--trained_param", str(args.trained_param), "--target_rate", str(args.target_rate), "--train_path",
               str(folder), *(["--data_path", args.data_path] if args.data_path else []), *flags, *args.rest]
    logger.info("run %s", name)
    utils.check_stopped()
    code = run_process(command)
    utils.check_stopped()
    if code:
        logger.error("the run %s ended with exit code %d.", name, code)
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


def criteria(args):
    """Prunes with each criterion at one rate."""
    data, split = load_data(args)
    rows = []
    for name in args.criteria:
        run = start_run(args, name, "--criterion", name, "--finetune_teacher", "none")
        cache = run.folder / "condition.json"
        options = _spectrum_options(args) | {"batch_size": args.batch_size}
        found = utils.read_json(cache) if cache.exists() else {}
        if found.get("options") != options:
            slimmed = run.folder / "slimmed_param.pkl"
            model = nets.from_params(args.arch, utils.load_params(slimmed), data.num_classes, slimmed)
            spectrum = landscape.of_model(model, split, data.normalise, batch_size=args.batch_size,
                                          batch_statistics=True).spectrum(**_spectrum_options(args))
            found = dataclasses.asdict(spectrum) | {"condition": spectrum.condition, "options": options}
            utils.write_json(cache, found)
        rows.append({"criterion": name, "val_loss": run.history[-1].loss, "condition": found["condition"],
                     "converged": found["converged"], "top1": 100 * run.table[2].top1,
                     "rate": run.table[2].flops / run.table[0].flops,
                     "search_seconds": run.phases["search"]["seconds"], "steps": len(run.history) - 1})
    title = f"{args.arch} on {args.dataset} at {args.target_rate:.0%} of the FLOPs"
    figures.draw_comparison(args.out / "criteria.png", title, [row["criterion"] for row in rows],
                            [(label, [row[name] for row in rows], None) for name, label in
                             (("val_loss", "validation loss, nats"), ("condition", "condition number"),
                              ("top1", "top-1 after fine-tuning, %"))])
    best = max(rows, key=lambda row: row["top1"])
    text = (f"{title}: " + "; ".join(f"{row['criterion']} loss {row['val_loss']:.4f}, κ {row['condition']:.4f}, top-1 "
                                     f"{row['top1']:.2f} %" for row in rows)
            + f". Best after fine-tuning: {best['criterion']}")
    write_results(args.out, "criteria", rows, text, published=analysis.PUBLISHED_CRITERIA)
    return rows


def ablation(args):
    """Search teacher x fine-tuning teacher, the five rows of the paper, several seeds."""
    rows = []
    for search, finetune in analysis.PUBLISHED_ABLATION:
        runs = [start_run(args, f"{search}-{finetune}-{seed}", "--search_teacher", search, "--finetune_teacher", finetune,
                          "--seed", str(seed)) for seed in args.seeds]
        mean, deviation = analysis.mean_and_deviation([100 * run.table[2].top1 for run in runs])
        rows.append({"search": search, "fine_tuning": finetune, "seeds": len(runs), "top1": mean, "deviation": deviation,
                     "search_seconds": np.mean([run.phases["search"]["seconds"] for run in runs]),
                     "finetune_seconds": np.mean([run.phases["fine-tune"]["seconds"] + run.phases.get("bank", {}).get(
                         "seconds", 0) for run in runs]), "baseline_top1": 100 * runs[0].table[0].top1})
    title = f"{args.arch} on {args.dataset} at {args.target_rate:.0%} of the FLOPs, {len(args.seeds)} seeds"
    names = [f"{row['search']} / {row['fine_tuning']}" for row in rows]
    figures.draw_comparison(args.out / "ablation.png", title, names,
                            [("top-1 after fine-tuning, %", [row["top1"] for row in rows],
                              [row["deviation"] for row in rows]),
                             ("search, s", [row["search_seconds"] for row in rows], None),
                             ("bank and fine-tuning, s", [row["finetune_seconds"] for row in rows], None)])
    text = f"{title}, search / fine-tuning teacher: " + "; ".join(
        f"{name} {row['top1']:.2f} ± {row['deviation']:.2f} %" for name, row in zip(names, rows))
    write_results(args.out, "ablation", rows, text)
    return rows


def run(args):
    """A finished run as report.png and report.html in its folder."""
    text = analysis.write_report(args.folder)
    print(text)
    print(f"results: {args.folder / 'report.html'}", file=sys.stderr)
    return text


def tables(args):
    """Markdown tables of run folders."""
    text = analysis.tables([analysis.read_run(folder) for folder in args.folders])
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tables.md").write_text(text + "\n")
    print(text)
    return text


COMMANDS = {"condition": condition, "landscape": draw_landscape, "correlation": correlation, "criteria": criteria,
            "ablation": ablation, "run": run, "tables": tables}


def main(args):
    """Runs the sub-command and returns its rows or text."""
    return COMMANDS[args.command](args)


if __name__ == "__main__":
    utils.run_script(main, parse_args)

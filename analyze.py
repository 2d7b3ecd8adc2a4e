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
import dataclasses
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import numpy as np
from dataloader import cifar
from ekg import analysis, devices, figures, greedy_search, importance, landscape, studies
from ekg.run_folder import RunFolder
from ekg.supernet import Supernet

EXIT_NOT_CONVERGED = 3
IMAGES = ("val", "subset", "test")


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


def _start(args, name, *flags):
    """Returns the finished Run of train_cifar.py with these flags."""
    data = ("--data_path", args.data_path) if args.data_path else ()
    return studies.run_training(args.out / "runs" / name, "--arch", args.arch, "--dataset", args.dataset, "--trained_param",
                                str(args.trained_param), "--target_rate", str(args.target_rate), *data, *flags, *args.rest)


def _check_converged(rows, name, out, advice="raise --max_products"):
    """Ends the program with exit code 3 if an eigenvalue of a row, which goes by `name`, is not known to the tolerance."""
    unsure = [f"{row[name]} (residuals {row['residual_smallest']:.2g}, {row['residual_largest']:.2g})"
              for row in rows if not row["converged"]]
    if unsure:
        print(f"error: {len(unsure)} condition numbers are not known to the tolerance: those of {name} {', '.join(unsure)}; "
              f"{advice}. What was found is kept in {out}.", file=sys.stderr)
        sys.exit(EXIT_NOT_CONVERGED)


# ---------------------------------------------------------------- commands

def condition(args):
    """Condition numbers of stored networks; exit code 3 where an eigenvalue is not known to the tolerance."""
    data, split = load_data(args)
    models = load_networks(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    lines, rows = args.out / "conditions.jsonl", []
    for (name, model), path in zip(models.items(), args.params):
        key = "|".join(map(str, (utils.sha256(path), studies.data_key(split), args.parameters, args.batch_statistics,
                                 args.tolerance, args.max_products, args.batch_size)))
        row = studies.known_rows(lines, "key").get(key)
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
    studies.write_results(args.out, "condition", rows, text)
    _check_converged(rows, "network", args.out)
    return rows


def draw_landscape(args):
    """Loss surfaces of stored networks on one scale."""
    data, split = load_data(args)
    models = load_networks(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    steps, lines, rows = np.linspace(-args.span, args.span, args.grid), args.out / "surfaces.jsonl", []
    for (name, model), path in zip(models.items(), args.params):
        key = "|".join(map(str, (utils.sha256(path), studies.data_key(split), args.batch_statistics, args.grid, args.span,
                                 args.batch_size)))
        row = studies.known_rows(lines, "key").get(key)
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
    studies.write_results(args.out, "landscape", rows, text, steps=steps.tolist())
    return rows


def correlation(args):
    """Random sub-networks at a rate: what predicts the loss after fine-tuning? Exit code 3 as of condition."""
    strategy = devices.make_strategy()
    data, split = load_data(args)
    supernet = Supernet(nets.from_params(args.arch, utils.load_params(args.trained_param), data.num_classes,
                                         args.trained_param))
    greedy_search.check_target(supernet, args.target_rate)
    what = {"trained_param": utils.sha256(args.trained_param), "target_rate": args.target_rate, "arch": args.arch,
            "dataset": args.dataset, "train_epoch": args.train_epoch, "batch_size": args.batch_size}
    what |= _spectrum_options(args) | {"format": 2}  # of history.jsonl: its lines have the residuals
    RunFolder(args.out, what, flag="--out")
    rows = studies.measure_subnetworks(supernet, data, split, strategy, args.out, count=args.subnetworks,
                                       target_rate=args.target_rate, epochs=args.train_epoch,
                                       batch_size=args.batch_size, spectrum_options=_spectrum_options(args))
    found = {name: analysis.correlate([row[name] for row in rows], [row["tuned_loss"] for row in rows])
             for name in ("val_loss", "condition")}
    title = (f"{args.arch} on {args.dataset}: {len(rows)} random sub-networks at {args.target_rate:.0%} of the FLOPs, "
             f"{args.train_epoch} epoch{'s' * (args.train_epoch > 1)} of fine-tuning")
    figures.draw_correlation(args.out / "correlation.png", title, rows, found)
    text = (f"{title}: correlation with the loss after fine-tuning: validation loss {found['val_loss']['pearson']:.2f} "
            f"(95 % {analysis.interval_text(found['val_loss'])}), condition number {found['condition']['pearson']:.2f} "
            f"(95 % {analysis.interval_text(found['condition'])}); published for 50 sub-networks: 0.32 and 0.73")
    studies.write_results(args.out, "correlation", rows, text, statistics=found)
    _check_converged(rows, "number", args.out, "raise --max_products and name a new --out")
    return rows


def criteria(args):
    """Prunes with each criterion at one rate; exit code 3 as of condition."""
    data, split = load_data(args)
    rows = []
    for name in args.criteria:
        run = _start(args, name, "--criterion", name, "--finetune_teacher", "none")
        slimmed = run.folder / "slimmed_param.pkl"
        model = nets.from_params(args.arch, utils.load_params(slimmed), data.num_classes, slimmed)
        found = studies.spectrum_of(model, split, data.normalise, run.folder / "condition.json", batch_size=args.batch_size,
                                    **_spectrum_options(args))
        rows.append({"criterion": name, "val_loss": run.history[-1].loss, "condition": found["condition"],
                     "converged": found["converged"], "residual_smallest": found["residual_smallest"],
                     "residual_largest": found["residual_largest"], "top1": 100 * run.table[2].top1,
                     "rate": run.table[2].flops / run.table[0].flops,
                     "search_seconds": analysis.seconds_of(run, "search"), "steps": len(run.history) - 1})
    title = f"{args.arch} on {args.dataset} at {args.target_rate:.0%} of the FLOPs"
    figures.draw_comparison(args.out / "criteria.png", title, [row["criterion"] for row in rows],
                            [(label, [row[name] for row in rows], None) for name, label in
                             (("val_loss", "validation loss, nats"), ("condition", "condition number"),
                              ("top1", "top-1 after fine-tuning, %"))])
    best = max(rows, key=lambda row: row["top1"])
    text = (f"{title}: " + "; ".join(f"{row['criterion']} loss {row['val_loss']:.4f}, κ {row['condition']:.4f}, top-1 "
                                     f"{row['top1']:.2f} %" for row in rows)
            + f". Best after fine-tuning: {best['criterion']}")
    studies.write_results(args.out, "criteria", rows, text, published=analysis.PUBLISHED_CRITERIA)
    _check_converged(rows, "criterion", args.out)
    return rows


def ablation(args):
    """Search teacher x fine-tuning teacher, the five rows of the paper, several seeds; rows of one search share it."""
    rows = []
    for search, finetune in analysis.PUBLISHED_ABLATION:
        runs = []
        for seed in args.seeds:
            searched = () if finetune == "none" else ("--search_from", str(args.out / "runs" / f"{search}-none-{seed}"))
            runs.append(_start(args, f"{search}-{finetune}-{seed}", "--search_teacher", search, "--finetune_teacher",
                               finetune, "--seed", str(seed), *searched))
        mean, deviation = analysis.mean_and_deviation([100 * run.table[2].top1 for run in runs])
        rows.append({"search": search, "fine_tuning": finetune, "seeds": len(runs), "top1": mean, "deviation": deviation,
                     "search_seconds": np.mean([analysis.seconds_of(run, "search") for run in runs]),
                     "finetune_seconds": np.mean([analysis.seconds_of(run, "bank", "fine-tune") for run in runs]),
                     "baseline_top1": 100 * runs[0].table[0].top1})
    several = len(args.seeds) > 1
    title = (f"{args.arch} on {args.dataset} at {args.target_rate:.0%} of the FLOPs, {len(args.seeds)} "
             f"seed{'s' * several}")
    names = [f"{row['search']} / {row['fine_tuning']}" for row in rows]
    figures.draw_comparison(args.out / "ablation.png", title, names,
                            [("top-1 after fine-tuning, %", [row["top1"] for row in rows],
                              [row["deviation"] for row in rows]),
                             ("search, s", [row["search_seconds"] for row in rows], None),
                             ("bank and fine-tuning, s", [row["finetune_seconds"] for row in rows], None)])
    text = f"{title}, search / fine-tuning teacher: " + "; ".join(
        f"{name} {row['top1']:.2f}" + f" ± {row['deviation']:.2f}" * several + " %" for name, row in zip(names, rows))
    studies.write_results(args.out, "ablation", rows, text)
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

"""Draws docs/method.png out of a finished run on the digits: the numbers in it are that run's.

make demo
python docs/make_method_picture.py runs/demo docs/method.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import utils
import dataloader
import matplotlib.pyplot as plt
import nets
import numpy as np
from ekg.data.dataset import mixed_order
from ekg.distil import bank
from ekg.network.supernet import Supernet
from ekg.report.pictures import COLOURS, save
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.searching import criteria, proposals
from ekg.searching.objective import Objective
from ekg.searching.targets import Flops

STEP = 8  # of the search, whose candidates are drawn
GREY, SQUARES = "#bbbbbb", 6


def draw_groups(axes):
    """A residual block: what must lose the same channels has one colour, and a cross stands where a
    gate is 0.
    """
    places = {"conv a": (0.4, 0), "conv b": (3.4, 1), "conv c": (6.4, 0)}
    removed = {0: (2, 5), 1: (1, 3, 4)}
    for name, (x, group) in places.items():
        _draw_channels(axes, x, 1.2 if group == 0 else 3.6, COLOURS[group], removed[group])
        axes.text(x + 0.4, (1.2 if group == 0 else 3.6) + 2.5, name, ha="center", fontsize=10)
    _draw_channels(axes, 9.6, 1.2, COLOURS[0], removed[0])
    axes.text(10.0, 3.7, "conv a + conv c", ha="center", fontsize=10)
    arrow = {"arrowstyle": "->", "lw": 1.4, "color": "#444444"}
    for begin, end in (
        ((1.3, 2.8), (3.3, 4.6)),
        ((4.3, 4.6), (6.3, 2.8)),
        ((7.3, 2.4), (9.5, 2.4)),
    ):
        axes.annotate("", end, begin, arrowprops=arrow)
    axes.annotate(
        "", (9.5, 1.5), (1.3, 1.5), arrowprops=arrow | {"connectionstyle": "arc3,rad=0.13"}
    )
    axes.set_xlim(0, 11)
    axes.set_ylim(-0.6, 7)
    axes.axis("off")
    axes.set_title("1. Channel groups and gates", loc="left", fontsize=12)
    axes.text(
        0.3, -0.5, "crossed: gate 0. conv a and conv c are added: one group, one mask", fontsize=9
    )


def _draw_channels(axes, x, y, colour, removed):
    for i in range(SQUARES):
        axes.add_patch(
            plt.Rectangle(
                (x, y + 0.4 * i),
                0.8,
                0.34,
                facecolor="white" if i in removed else colour,
                edgecolor=colour,
            )
        )
        if i in removed:
            axes.plot([x, x + 0.8], [y + 0.4 * i, y + 0.4 * i + 0.34], color=colour, lw=1)


def draw_step(axes, supernet, data, history, arguments):
    """The candidates of one search step, computed again, with the reward of each."""
    split = data.last_of_each_class(arguments["val_per_class"], arguments["seed"])
    objective = Objective(
        supernet, data.batches(split, arguments["search_batch_size"]), arguments["search_teacher"]
    )
    for entry in history[:STEP]:
        objective.add_knowledge(entry.subnetwork)
    present = history[STEP - 1].subnetwork
    scores = criteria.ekg(criteria.CriterionContext(objective, present, arguments["seed"]))
    narrowed = {
        group.name: sum(group.name in entry.narrowed for entry in history[:STEP])
        for group in supernet.groups
    }
    present, candidates = proposals.propose(
        supernet,
        present,
        scores,
        Flops(arguments["target_rate"]),
        arguments["search_step"],
        narrowed,
        arguments.get("group_choice", "intended"),
    )
    rewards = {
        group: score.reward
        for (group, _), score in zip(candidates, objective.scores(present, candidates))
    }
    chosen = max(rewards, key=rewards.get)
    low, high = min(rewards.values()), max(rewards.values())
    places = range(len(supernet.groups))
    for group in places:
        if group in rewards:
            axes.barh(
                group,
                rewards[group] - low + 0.05 * (high - low),
                color=COLOURS[1] if group == chosen else COLOURS[0],
            )
        else:
            axes.text(0, group, " not tried", va="center", fontsize=8, color="#777777")
    axes.set_yticks(
        list(places),
        [group.name.replace("BasicBlock", "block ") for group in supernet.groups],
        fontsize=8,
    )
    axes.set_ylim(len(supernet.groups) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_xlabel("reward if this group is narrowed (longer is better)")
    axes.set_title(
        f"2. Search step {STEP}: the best of {len(candidates)} candidates", loc="left", fontsize=12
    )
    if supernet.groups[chosen].name != history[STEP].group:
        raise SystemExit(
            f"error: step {STEP} took {history[STEP].group}, and here "
            f"{supernet.groups[chosen].name} is best."
        )


def draw_way(axes, history, teachers):
    """Loss against rate on the way down, with the interim sub-networks that become teachers."""
    rates, losses = [entry.rate for entry in history], [entry.loss for entry in history]
    axes.plot(rates, losses, "o-", color=COLOURS[0], markersize=4, lw=1)
    axes.plot(
        [rates[i] for i in teachers],
        [losses[i] for i in teachers],
        "o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=COLOURS[1],
        markeredgewidth=1.8,
        label="teachers",
    )
    axes.annotate(
        "Θ*", (rates[-1], losses[-1]), textcoords="offset points", xytext=(6, -4), fontsize=11
    )
    axes.annotate(
        "Θ₀", (rates[0], losses[0]), textcoords="offset points", xytext=(0, 10), fontsize=11
    )
    axes.invert_xaxis()
    axes.set_xlabel("rate: share of the FLOPs that is kept")
    axes.set_ylabel("validation loss, nats")
    axes.legend(frameon=False)
    axes.set_title("3. The way to Θ*: every step leaves a sub-network", loc="left", fontsize=12)


def draw_bank(axes, data, memory_bank, teachers):
    """What the teachers say of the training image that they agree on least."""
    rows = memory_bank.rows(np.arange(len(data.train))).astype(np.float64)
    shares = np.exp(rows - rows.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    image = int(shares.std(1).sum(-1).argmax())
    axes.imshow(shares[image], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(teachers)), [f"Θ{step}" for step in teachers])
    axes.set_xticks(range(shares.shape[-1]))
    axes.set_xlabel(f"class; the image on the right is a {data.train.labels[image]}")
    for place, value in np.ndenumerate(shares[image]):
        if value > 0.05:
            axes.text(
                place[1],
                place[0],
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 0.5 else "black",
            )
    axes.set_title("4. Memory bank: the teachers' rows for one image", loc="left", fontsize=12)
    inset = axes.inset_axes([1.02, 0.25, 0.2, 0.5])
    inset.imshow(data.train.read([image])[0].squeeze())
    inset.axis("off")


def main(path, picture):
    folder = RunFolder(path)
    arguments, history = folder.arguments(), folder.history()
    data = dataloader.load(arguments["dataset"])
    supernet = Supernet(
        nets.from_params(
            arguments["arch"], utils.load_params(folder / names.SUPERNET), data.num_classes
        )
    )
    teachers = bank.select_teachers([entry.loss for entry in history], arguments["num_teacher"])
    batches = data.batches(
        data.train, arguments["search_batch_size"] // arguments["accum"], mixed_order(data.strata)
    )
    memory_bank = bank.open_bank(folder / names.BANK, batches)
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained")
    draw_groups(axes[0, 0])
    draw_step(axes[0, 1], supernet, data, history, arguments)
    draw_way(axes[1, 0], history, teachers)
    draw_bank(axes[1, 1], data, memory_bank, teachers)
    save(figure, picture)


if __name__ == "__main__":
    main(*sys.argv[1:])

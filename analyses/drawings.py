"""Selects the data of the pictures on the page of results, and draws them."""

from analyses import repetitions
from analyses.records import counted

METHODS = "methods.png"
RATES = "rates.png"
CURVES = "curves.png"
RATE_STEPS = 20  # rates are rounded to 1/20 when methods are sorted by rate
TEXTS = {
    METHODS: "top-1 of every method: dots are runs, bars mean and standard deviation of several "
    "seeds",
    RATES: "top-1 over the FLOPs kept",
    CURVES: "top-1 over the epochs of fine-tuning",
}


def draw(records, folder):
    """Draws the pictures of records into a folder, and removes pictures that would be empty.

    Args:
        records: list of records.Record.
        folder: pathlib.Path of the folder.
    """
    contents = shown(records)
    for name in TEXTS.keys() - contents.keys():
        (folder / name).unlink(missing_ok=True)
    if contents:
        from analyses import pictures  # imports matplotlib

        functions = {
            METHODS: pictures.draw_methods,
            RATES: pictures.draw_rates,
            CURVES: pictures.draw_curves,
        }
        for name, networks in contents.items():
            functions[name](folder / name, networks)


def shown(records):
    """Returns the contents of all pictures that are not empty.

    Returns:
        {file name: {title of a network: data for the function that draws the picture}}.
    """
    groups_by_network = {}
    for group in repetitions.group(records):
        first = group.first
        epochs = counted(first.arguments["train_epoch"], "epoch")
        title = f"{first.arguments['arch']}, {first.data}, {epochs}"
        groups_by_network.setdefault(title, []).append(group)
    contents = {name: {} for name in TEXTS}
    for title, groups in groups_by_network.items():
        baselines = [record.top1(0) for group in groups for record in group.records]
        # The sort is stable, so among equal rates the best method stays first.
        by_rate = sorted(groups, key=lambda group: -round(RATE_STEPS * _rate(group)))
        contents[METHODS][title] = baselines, [(_title(group), _ends(group)) for group in by_rate]
        lines = _lines(groups)
        if lines:
            contents[RATES][title] = baselines, lines
        curves = [(_title(group), _curves(group)) for group in groups if _curves(group)]
        if curves:
            contents[CURVES][title] = curves
    return {name: networks for name, networks in contents.items() if networks}


def _rate(group):
    return group.mean(lambda record: record.rate)


def _ends(group):
    """Returns the final top-1 of the runs of a group, in %."""
    return [record.top1(-1) for record in group.records]


def _title(group):
    return f"{group.method}, {100 * _rate(group):.0f} %"


def _lines(groups):
    """Returns {method: list of (rate, top-1 of the runs in %)} of methods with several rates."""
    lines = {}
    for group in groups:
        lines.setdefault(group.method, []).append((_rate(group), _ends(group)))
    return {method: sorted(points) for method, points in lines.items() if len(points) > 1}


def _curves(group):
    """Returns the top-1 on D_val in % after each epoch, a list per run that recorded it."""
    return [[100 * value for value in record.curve] for record in group.records if record.curve]

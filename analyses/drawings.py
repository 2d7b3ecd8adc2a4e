"""The pictures of a page of results: what of the records each of them shows."""

from analyses import repetitions
from analyses.records import counted

METHODS, RATES, CURVES = "methods.png", "rates.png", "curves.png"
RATE_STEPS = 20  # rates that differ by less than one of so many count as equal
TEXTS = {
    METHODS: "top-1 of every method: dots are runs, bars mean and standard deviation of several "
    "seeds",
    RATES: "top-1 over the FLOPs kept",
    CURVES: "top-1 over the epochs of fine-tuning",
}


def draw(records, folder):
    """Draws the pictures of records into a folder; one that would show nothing is not there
    afterwards.

    Args:
        records: list of records.Record.
        folder: pathlib.Path.
    """
    found = shown(records)
    for name in TEXTS.keys() - found.keys():
        (folder / name).unlink(missing_ok=True)
    if found:
        from analyses import pictures  # imports matplotlib

        functions = {
            METHODS: pictures.draw_methods,
            RATES: pictures.draw_rates,
            CURVES: pictures.draw_curves,
        }
        for name, networks in found.items():
            functions[name](folder / name, networks)


def shown(records):
    """Returns {file name: what it shows, {network, data and epochs in words: what of it}}, but for
    empty pictures.
    """
    networks, found = {}, {name: {} for name in TEXTS}
    for group in repetitions.group(records):
        first = group.first
        title = (
            f"{first.arguments['arch']}, {first.data}, "
            f"{counted(first.arguments['train_epoch'], 'epoch')}"
        )
        networks.setdefault(title, []).append(group)
    for title, groups in networks.items():
        baselines = [record.top1(0) for group in groups for record in group.records]
        by_rate = sorted(
            groups, key=lambda group: -round(RATE_STEPS * _rate(group))
        )  # the best first among equal ones
        found[METHODS][title] = baselines, [(_title(group), _ends(group)) for group in by_rate]
        if lines := _lines(groups):
            found[RATES][title] = baselines, lines
        if curves := [(_title(group), runs) for group in groups if (runs := _curves(group))]:
            found[CURVES][title] = curves
    return {name: networks for name, networks in found.items() if networks}


def _rate(group):
    return group.mean(lambda record: record.rate)


def _ends(group):
    """Returns the top-1 of the runs in %."""
    return [record.top1(-1) for record in group.records]


def _title(group):
    return f"{group.method}, {100 * _rate(group):.0f} %"


def _lines(groups):
    """Returns {method: list of (rate, top-1 of the runs in %)} of methods that ran at several
    rates.
    """
    lines = {}
    for group in groups:
        lines.setdefault(group.method, []).append((_rate(group), _ends(group)))
    return {method: sorted(points) for method, points in lines.items() if len(points) > 1}


def _curves(group):
    """Returns lists of top-1 on D_val in % behind each epoch, of the runs that kept them."""
    return [[100 * value for value in record.curve] for record in group.records if record.curve]

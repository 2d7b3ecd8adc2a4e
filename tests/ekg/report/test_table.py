import pytest

from ekg.report.table import Row, format_table, latency_text, milliseconds_text, notes


def column(text, name):
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
    ]
    return [line[head.index(name)] for line in lines]


def rates(text):
    return column(text, "rate")


def test_rates_are_relative_to_the_first_row_or_the_unpruned_network():
    rows = [
        Row(name, 1.0, {"top1": 0.5, "top5": 0.9}, 10, flops, 1024)
        for name, flops in (("baseline", 400), ("fine-tuned", 180))
    ]
    assert rates(format_table(rows)) == ["1.0000", "0.4500"]
    assert rates(format_table(rows[1:], whole_flops=400)) == ["0.4500"]


def test_latencies_are_shown_beside_their_ratio_and_give_images_per_second():
    conditions = ("litert, batch 1, 1 thread", "tensorflow, batch 256")
    rows = [
        Row(
            name,
            1.0,
            {"top1": 0.5},
            10,
            20,
            1024,
            dict.fromkeys(conditions, timing),
            {"litert": 2048},
        )
        for name, timing in (
            ("a", {"milliseconds": 2.0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}),
            ("b", {"milliseconds": 1.0, "ratio": 0.5, "ratio_low": 0.45, "ratio_high": 0.53}),
        )
    ]
    text = format_table(rows)
    assert column(text, "ms, litert, batch 1, 1 thread") == [
        "2 = 1.000 [1.000, 1.000]",
        "1 = 0.500 [0.450, 0.530]",
    ]
    assert column(text, "images/s, tensorflow, batch 256") == ["128,000", "256,000"]
    assert column(text, "litert KiB") == ["2", "2"]
    assert column(format_table(rows[1:]), "ms, tensorflow, batch 256") == ["1"]


def test_the_latencies_of_an_earlier_version_are_read():
    row = Row.from_json(
        {
            "name": "a",
            "loss": 1.0,
            "top1": 0.5,
            "top5": 0.9,
            "params": 1,
            "flops": 2,
            "file_size": 3,
            "latency_1": 4.0,
            "latency_256": 5.0,
        }
    )
    assert row.metrics == {"top1": 0.5, "top5": 0.9} and row.exports == {}
    assert row.latencies == {
        "tensorflow, batch 1": {"milliseconds": 4.0},
        "tensorflow, batch 256": {"milliseconds": 5.0},
    }
    assert column(format_table([row, row]), "ms, tensorflow, batch 1") == ["4", "4"]


@pytest.mark.parametrize(
    "value, text",
    [(0.01234, "0.0123"), (4.305, "4.3"), (999.4, "999"), (999.6, "1,000"), (1234.5, "1,234")],
)
def test_milliseconds_have_three_digits_and_no_exponent(value, text):
    assert milliseconds_text(value) == text


@pytest.mark.parametrize(
    ("timing", "is_busy"),
    [
        (
            {
                "milliseconds": 2.0,
                "low": 1.9,
                "high": 2.2,
                "ratio": 1.0,
                "ratio_low": 1.0,
                "ratio_high": 1.0,
            },
            False,
        ),
        (
            {
                "milliseconds": 2.0,
                "low": 1.9,
                "high": 2.4,
                "ratio": 1.0,
                "ratio_low": 1.0,
                "ratio_high": 1.0,
            },
            True,
        ),
        (
            {
                "milliseconds": 1.0,
                "low": 0.5,
                "high": 2.0,
                "ratio": 0.5,
                "ratio_low": 0.46,
                "ratio_high": 0.55,
            },
            False,
        ),
        (
            {
                "milliseconds": 1.0,
                "low": 1.0,
                "high": 1.0,
                "ratio": 0.5,
                "ratio_low": 0.3,
                "ratio_high": 4.7,
            },
            True,
        ),
        ({"milliseconds": 1.0}, False),
    ],
)
def test_a_latency_whose_rounds_differ_by_more_than_a_fifth_is_marked(timing, is_busy):
    """The first network by its own time, another by its ratio, which a drift of the machine leaves
    alone.
    """
    assert ("machine busy" in latency_text(timing)) == is_busy


def timed(name, **conditions):
    """A row with (milliseconds, ratio, its first and last decile) under each of the conditions."""
    keys = ("milliseconds", "ratio", "ratio_low", "ratio_high")
    latencies = {
        f"{runtime.replace('_', ' ')}, batch 1, 1 thread": dict(zip(keys, values))
        for runtime, values in conditions.items()
    }
    return Row(name, 1.0, {"top1": 0.5}, 10, 20, 1024, latencies)


@pytest.mark.parametrize(
    ("values", "is_reported"),
    [
        ((1.36, 1.36, 1.30, 1.41), True),
        ((0.60, 0.60, 0.58, 0.66), False),
        ((1.01, 1.01, 1.00, 1.02), False),  # no slower than a measurement can tell
        ((1.10, 1.10, 0.70, 1.90), False),  # nothing is certain on a busy machine
    ],
)
def test_a_pruned_network_that_is_slower_than_the_unpruned_one_is_reported(values, is_reported):
    whole = (1.0, 1.0, 1.0, 1.0)
    rows = [
        timed("unpruned", onnxruntime=whole, litert=whole),
        timed("pruned", onnxruntime=values, litert=(0.5, 0.5, 0.5, 0.5)),
    ]
    found = notes(rows)
    assert len(found) == is_reported
    assert all("1.36 of the unpruned network's time in onnxruntime" in text for text in found)


def test_a_network_that_is_slower_in_8_bits_than_in_32_is_reported():
    rows = [
        timed("unpruned", litert=(2.0, 1.0, 1.0, 1.0), litert_int8=(1.0, 0.5, 0.5, 0.5)),
        timed("pruned", litert=(0.8, 0.4, 0.4, 0.4), litert_int8=(0.9, 0.45, 0.45, 0.45)),
    ]
    (text,) = notes(rows)
    assert "pruned is slower in 8 bits than in 32" in text and "0.9 and 0.8 ms" in text

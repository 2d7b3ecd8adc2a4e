import itertools

import numpy as np
import pytest

from ekg.latency.curves import Curve, fine_counts, points_of


def curve_of(function, sizes):
    return Curve({point: function(*point) for point in points_of(sizes)}, sizes)


def errors_of(function, sizes):
    """Returns the relative errors at all numbers of channels."""
    curve = curve_of(function, sizes)
    return np.array(
        [
            curve.seconds(point) / function(*point) - 1
            for point in itertools.product(*(range(1, size + 1) for size in sizes))
        ]
    )


def test_measured_points_are_returned():
    rng = np.random.default_rng(0)
    times = {point: rng.uniform(1, 2) for point in points_of((40, 24))}
    curve = Curve(times, (40, 24))
    for point, time in times.items():
        assert curve.seconds(point) == pytest.approx(time), point


@pytest.mark.parametrize(
    "time",
    [
        lambda read, wrote: (5.0 + read) * -(-wrote // 8),
        lambda read, wrote: 3 + 0.2 * read + (1.0 + 0.5 * read) * -(-wrote // 16),
    ],
)
def test_tiles_of_written_channels_are_followed(time):
    assert np.abs(errors_of(time, (48, 64))).max() < 1e-9


def test_a_sum_and_a_product_are_followed():
    assert (
        np.abs(
            errors_of(
                lambda read, wrote: 10 + 0.1 * read + 0.05 * wrote + 0.02 * read * wrote, (64, 64)
            )
        ).max()
        < 1e-9
    )


def test_steps_of_channels_read_are_followed_where_they_are_a_factor():
    assert (
        np.abs(errors_of(lambda read, wrote: -(-read // 8) * (2.0 + wrote), (64, 32))).max() < 1e-9
    )


def test_further_dims_are_factors():
    def time(read, wrote, first, second):
        return (3.0 + read * wrote) * (1 + first) * (5 + second)

    assert np.abs(errors_of(time, (6, 9, 5, 4))).max() < 1e-9


def test_one_dim_and_none():
    assert curve_of(lambda count: 2.0 * count, (20,)).seconds((7,)) == pytest.approx(14)
    assert curve_of(lambda: 3.0, ()).seconds(()) == 3.0


def test_a_curve_goes_to_json_and_back():
    curve = curve_of(lambda read, wrote: 1.0 + read * wrote, (9, 5))
    assert Curve.from_json(curve.to_json()) == curve


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [1]),
        (5, [1, 2, 4, 5]),
        (16, [1, 2, 4, 5, 8, 9, 16]),
        (40, [1, 2, 4, 8, 9, 12, 16, 17, 24, 25, 32, 33, 40]),
    ],
)
def test_the_fine_grid_has_both_sides_of_every_eighth_channel(size, expected):
    assert fine_counts(size) == expected
    assert len(fine_counts(2048)) < 140

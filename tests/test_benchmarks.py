"""What the speed pages are made of; no speed itself is tested."""

import math

import pytest

from benchmarks import growth, performance


def test_a_slope_is_that_of_the_logarithms():
    assert growth.Curve("images", [1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]).slope == pytest.approx(1)
    assert growth.Curve("width", [1, 2, 4, 8], [1.0, 4.0, 16.0, 64.0]).slope == pytest.approx(2)
    assert growth.Curve("images", [1, 10], [5.0, 5.0 * math.sqrt(10)]).slope == pytest.approx(0.5)


def result(factor):
    """Returns what one revision took, `factor` times two seconds for everything, at a peak of 10 GFLOP/s."""
    phase = {"seconds": 2 * factor, "images": 100, "work": 5e9}
    return {"search": [{"step": 8, "candidates": 3, "seconds": 2 * factor, "work": 5e9}], "baseline": phase,
            "fine-tune": phase, "bank": phase, "peak": 1e10,
            "small run": {"whole": 20 * factor, "without": 4 * factor, "report": factor}}


def test_a_page_of_two_revisions_tells_ratios_and_shares_of_the_peak(tmp_path):
    curves = [{"name": "images", "counts": [1, 2], "seconds": [1.0, 2.0]}]
    record = {"arch": "ResNet-56", "before": {"revision": "a" * 40, "results": [result(2), result(2), result(9)]},
              "after": {"origin": {"revision": "b" * 40, "machine": {"processor": "a machine"}, "cores": 2},
                        "results": [result(1)]},
              "growth": curves}
    page = performance.markdown(record)
    assert "| search step 8, 3 candidates | 4.00 s | 2.00 s | 2.00 | 0.25 | 0.50 |" in page
    assert "| memory bank | 25 rows/s | 50 rows/s | 2.00 | 0.25 | 0.50 |" in page
    assert "| small run on DIGITS, whole | 40.0 s | 20.0 s | 2.00 |  |  |" in page
    assert "aaaaaaa and bbbbbbb, ran in turn on one machine (a machine, 2 cores)" in page
    assert "| images | 1 to 2 | 1.00 to 2.00 | 1.00 |" in page
    growth.draw(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000

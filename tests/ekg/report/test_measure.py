import pytest

from ekg.report import measure


class Clock:
    """A clock that a forward pass moves on by so many seconds."""

    def __init__(self, seconds):
        self.now, self._seconds = 0.0, iter(seconds)

    def perf_counter(self):
        self.now += next(self._seconds)
        return self.now


@pytest.mark.parametrize(("passes", "expected"), [
    # Two passes warm up; of nine others, in milliseconds, the median is the fifth.
    ([5.0, 4.0, .009, .001, .008, .002, .005, .003, .007, .004, .006], 5.0),
    # Slow passes: behind the third, the 20 seconds are over.
    ([9.0, 9.0, 8.0], 8000.0)])
def test_latency_is_the_median_behind_the_warm_up(tiny_resnet, monkeypatch, passes, expected):
    steps = [step for seconds in passes for step in (0.0, seconds)]
    monkeypatch.setattr(measure.time, "perf_counter", Clock(steps).perf_counter)
    assert measure.measure_latency(tiny_resnet, 2) == pytest.approx(expected)

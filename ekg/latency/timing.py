"""Measures latencies: networks in turn, so that a drift of the machine hits all alike."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ekg.deploy.format import Format
from ekg.deploy.formats import runtime_named
from ekg.process import stopping

SAMPLE_SECONDS = 2e-4  # what runs faster is repeated within a sample
WARMUP_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Conditions under which a latency is measured.

    Attributes:
        runtime: name of one of formats.RUNTIMES.
        batch: number of examples in one pass.
        threads: threads of a pass; None means one, and in TensorFlow all threads of the process.
    """

    runtime: str
    batch: int = 1
    threads: int | None = None

    @property
    def num_threads(self):
        """Threads of a pass, as a runtime takes them."""
        return 1 if self.threads is None and self.runtime != "tensorflow" else self.threads

    def __str__(self):
        threads = (
            ""
            if self.num_threads is None
            else f", {self.num_threads} thread{'s' * (self.num_threads > 1)}"
        )
        return f"{self.runtime}, batch {self.batch}{threads}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Duration of one forward pass.

    Attributes:
        milliseconds: median of all rounds.
        low, high: first and last decile.
        ratio: this median divided by the first network's.
        ratio_low, ratio_high: first and last decile over the rounds of its time divided by the
            first network's in the same round, which a drift of the machine leaves alone.
        rounds: number of rounds.
    """

    milliseconds: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def time_in_turn(functions, rounds, seconds=float("inf"), warmup=WARMUP_SECONDS, own_caches=True):
    """Returns the seconds of one call of each function, float array [rounds, functions].

    Each round calls every function once, or repeatedly until a sample lasts SAMPLE_SECONDS.

    Args:
        functions: list of functions without arguments.
        rounds: number of times that they are timed.
        seconds: after this time no further round begins, except for the first three.
        warmup: seconds for which each function runs before the first round, at least once.
        own_caches: whether each sample follows an untimed call of the same function, as if one
            network serves alone; else the functions before it have filled the caches.
    """
    repeats = [_warm_up(function, warmup) for function in functions]
    start, samples = time.perf_counter(), []
    while len(samples) < rounds and (len(samples) < 3 or time.perf_counter() - start < seconds):
        samples.append(
            [_sample(function, count, own_caches) for function, count in zip(functions, repeats)]
        )
        stopping.check()
    return np.array(samples)


def measure_latency(
    models: Mapping[Any, keras.Model],
    runtime: str | Format,
    batch: int = 1,
    threads: int | None = None,
    input_shape: Any = None,
    rounds: int = 60,
    seconds: float = 20.0,
) -> dict[Any, Timing]:
    """Returns {name: Timing} of several networks, measured in turn as ekg.export() writes them.

    Args:
        models: {name: functional keras.Model}; ratios are to the first.
        runtime: name of one of formats.RUNTIMES, or the format.Format of one.
        batch: examples in one pass.
        threads: threads of a pass; None takes the default of the runtime.
        input_shape: shape of an example, where the models take any size.
        rounds, seconds: see time_in_turn.

    Raises:
        EkgError: the runtime is unknown, not installed, or does not know an operator.
    """
    runtime = runtime_named(runtime) if isinstance(runtime, str) else runtime
    passes = [runtime.timed(model, batch, threads, input_shape) for model in models.values()]
    return measure_passes(dict(zip(models, passes)), rounds, seconds)


def measure_passes(passes, rounds, seconds):
    """Returns {name: Timing} of functions without arguments, {name: function}, measured in turn."""
    samples = time_in_turn(list(passes.values()), rounds, seconds)
    return dict(zip(passes, summarise(samples)))


def summarise(samples):
    """Returns a list of one Timing per column of samples, seconds [rounds, functions]."""
    low, middle, high = np.quantile(1000 * samples, (0.1, 0.5, 0.9), axis=0)
    ratio_low, ratio_high = np.quantile(samples / samples[:, :1], (0.1, 0.9), axis=0)
    columns = zip(middle, low, high, middle / middle[0], ratio_low, ratio_high)
    return [Timing(*map(float, values), len(samples)) for values in columns]


def _warm_up(function, seconds):
    """Returns the number of calls of a function in one sample."""
    begin = time.perf_counter()
    times = [_sample(function, 1)]
    while time.perf_counter() - begin < seconds and len(times) < 50:
        times.append(_sample(function, 1))
    return max(round(SAMPLE_SECONDS / max(min(times), 1e-7)), 1)


def _sample(function, count, is_after_itself=False):
    if is_after_itself:
        function()
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count

"""A runtime whose time is known: it moves a clock on by what a model costs."""

import math

from ekg.deploy import format, formats
from ekg.graph.calls import Graph
from ekg.latency import timing


def seconds_of(model, tile=8):
    """Returns what a pass takes in the made-up runtime: a convolution computes in tiles of its
    output channels.

    Every kernel adds to it, and each pass takes a microsecond besides.
    """
    graph, total = Graph(model, open_layers=True), 1e-6
    for call in graph.calls:
        shape = graph.shapes[call.output]
        area, channels = math.prod(shape[1:-1]), shape[-1]
        name = type(call.layer).__name__
        if name in ("Conv2D", "Dense"):
            read = graph.shapes[call.inputs[0]][-1]
            total += 1e-8 * area * (3 + read) * math.ceil(channels / tile) * tile
        elif name == "Add":
            total += 1e-8 * area * channels
    return total


class Clock:
    """What time.perf_counter() says while a made-up runtime runs, and the batch and the threads of
    its passes.
    """

    def __init__(self):
        self.now, self.loads, self.conditions = 0.0, 0, set()

    def perf_counter(self):
        return self.now


class MadeUp(format.Format):
    """See seconds_of; it takes no real time and no random one."""

    name, runtime = "litert", "litert"

    def __init__(self, clock):
        self._clock = clock

    def timed(self, model, batch, threads=None, input_shape=None):
        seconds = seconds_of(model)
        self._clock.loads += 1
        self._clock.conditions.add((batch, threads))

        def run():
            self._clock.now += seconds

        return run


def install(patch):
    """Puts the made-up runtime in the place of LiteRT; returns its Clock."""
    clock = Clock()
    patch.setitem(formats.RUNTIMES, "litert", MadeUp(clock))
    patch.setattr(timing, "time", clock)
    return clock

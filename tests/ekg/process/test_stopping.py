import signal

import pytest

from ekg.process import stopping


@pytest.fixture(autouse=True)
def without_request():
    """Nobody asks this process to end, before the test and behind it."""
    stopping.request(None)
    yield
    stopping.request(None)


def test_a_loop_ends_at_its_next_check_for_a_request():
    stopping.check()
    assert stopping.requested() == 0
    stopping.handle_signal(signal.SIGTERM, None)
    assert stopping.requested() == signal.SIGTERM
    with pytest.raises(stopping.Stopped, match="SIGTERM") as stopped:
        stopping.check()
    assert stopped.value.signal == signal.SIGTERM
    stopping.request(None)
    stopping.check()


def test_a_second_ctrl_c_stops_immediately():
    stopping.handle_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stopping.handle_signal(signal.SIGINT, None)


def test_other_signals_may_come_twice():
    for number in (signal.SIGUSR1, signal.SIGTERM):
        stopping.handle_signal(number, None)
        assert stopping.requested() == number

import io
import logging

from ekg.process import progress


def test_in_a_file_a_bar_is_one_line_per_minute(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e-9)
    with progress.progress_bar("search", 3, "step") as bar:
        for _ in range(3):
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) >= 3
        and all(line.startswith("search: ") for line in lines)
        and "3/3" in lines[-1]
    )
    monkeypatch.setattr(progress, "LINE_SECONDS", 60)
    with progress.progress_bar("short", 3, "step") as bar:
        for loss in range(3):
            bar.update(1)
            bar.set_postfix({"loss": loss})
    assert capsys.readouterr().err == ""


def test_in_a_terminal_a_bar_overwrites_one_line(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.progress_bar("search", 3, "step") as bar:
        bar.update(3)
    text = capsys.readouterr().err
    assert text.count("\r") >= 1 and text.count("\n") == 1


def test_nothing_is_shown_unless_requested(capsys):
    with progress.shown(False), progress.progress_bar("search", 3, "step") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_narrow_terminal_shows_only_figures_that_fit_whole():
    with progress._Bar(
        total=390, desc="fine-tune 12/300", unit="step", ncols=80, file=io.StringIO()
    ) as bar:
        bar.set_postfix(
            {"loss": "2.0148", "top1": "31.76%", "val_top1": "30.11%", "images/s": "1234"}
        )
        narrow = str(bar)
        bar.ncols = 130
        wide = str(bar)
    assert len(narrow) <= 80 and narrow.endswith("top1=31.76%") and "|" not in narrow
    assert 100 < len(wide) <= 130 and wide.endswith("images/s=1234]") and "|" in wide


def test_messages_appear_once_above_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.shown(True), progress.progress_bar("search", 3, "step") as bar:
        bar.update(1)
        logging.getLogger("ekg.search").info("a word")
        bar.update(2)
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines.count("a word") == 1 and lines[-1].startswith("search: ")


def test_a_warning_is_logged_once_as_long_as_a_job_lasts(caplog):
    first, second = logging.getLogger("ekg.pruning"), logging.getLogger("ekg.graph.cutting")
    for _ in range(2):  # two jobs
        # a script's, and that of the call inside
        with caplog.at_level(logging.INFO, "ekg"), progress.shown(True), progress.shown(False):
            for number in (1, 1, 2, 1):
                first.warning("seen %d", number)
                second.warning("seen %d", number)
    assert [record.getMessage() for record in caplog.records] == ["seen 1", "seen 2"] * 2
    first.warning("seen 1")
    first.warning("seen 1")
    assert len(caplog.records) == 6

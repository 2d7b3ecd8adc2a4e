"""The table and the page of a front, of made-up runs."""

import dataclasses

import pytest

from ekg.report import pictures
from ekg.report.front import FrontPoint, format_front, notes_of, table_of, write_front
from ekg.report.page import FinishedRun
from ekg.report.table import Row

LITERT = "litert, batch 1, 1 thread"


def row(name, top1, flops, milliseconds):
    timing = {
        "milliseconds": milliseconds,
        "ratio": milliseconds / 4,
        "ratio_low": milliseconds / 4,
        "ratio_high": milliseconds / 4,
    }
    return Row(name, 1.0, {"top1": top1}, flops // 10, flops, 1024, {LITERT: timing})


def point(rate, cut, tuned, is_repaired=True):
    table = [
        row("baseline", 0.9, 1000, 4.0),
        row("slimmed", cut, round(1000 * rate), 4 * rate),
        row("fine-tuned", tuned, round(1000 * rate), 4 * rate),
    ]
    run = FinishedRun({"arch": "net", "dataset": "noise"}, [], [], table, {})
    return FrontPoint(f"{rate:g} of the FLOPs", run, is_repaired)


@pytest.fixture
def points():
    return [point(0.8, 0.85, 0.89), point(0.4, 0.6, 0.8)]


def test_the_table_has_the_unpruned_network_and_one_row_per_target(points):
    head, (unpruned, easy, hard) = table_of(points)
    assert head == [
        "target",
        "FLOPs kept",
        "parameters kept",
        "top-1 %, repaired",
        "top-1 %, fine-tuned",
        f"ms, {LITERT}",
    ]
    assert unpruned[:5] == ["unpruned", "1.0000", "1.0000", "90.00", "90.00"]
    assert easy[:5] == ["0.8 of the FLOPs", "0.8000", "0.8000", "85.00", "89.00"]
    assert hard[3:] == ["60.00", "80.00", "1.6 = 0.400 [0.400, 0.400]"]
    assert len(format_front(points).splitlines()) == 5


def test_networks_that_are_not_repaired_are_called_cut():
    head, _ = table_of([point(0.5, 0.5, 0.8, is_repaired=False)])
    assert "top-1 %, cut" in head


def test_a_page_holds_the_picture_and_the_table(points, tmp_path):
    write_front(points, tmp_path / "front.png", tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert "data:image/png;base64," in page and "0.8 of the FLOPs" in page
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_points_timed_while_the_machine_was_slower_stay_comparable(points, tmp_path, monkeypatch):
    for row in points[1].run.table:  # twice as slow, the unpruned network, too
        row.latencies[LITERT]["milliseconds"] *= 2
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure.axes[1]))
    pictures.draw_front(tmp_path / "front.png", points)
    by_step = [list(line.get_xdata()) for line in drawn[0].lines if len(line.get_xdata()) == 2]
    assert by_step[0] == [0.8, 0.4] and drawn[0].lines[-1].get_xdata() == [1.0]


def test_a_note_names_its_target_unless_it_is_about_all(points):
    easy, hard = points
    hard.run.table[2].latencies[LITERT].update(ratio=1.4, ratio_low=1.3)
    easy = dataclasses.replace(easy, notes=("measured on 40 examples", "at 8x8 the rate is 0.9"))
    hard = dataclasses.replace(hard, notes=("measured on 40 examples", "at 8x8 the rate is 0.5"))
    common, at_easy, at_hard, slower = notes_of([easy, hard])
    assert common == "measured on 40 examples"
    assert at_easy == "0.8 of the FLOPs: at 8x8 the rate is 0.9"
    assert at_hard == "0.4 of the FLOPs: at 8x8 the rate is 0.5"
    assert slower.startswith("0.4 of the FLOPs: fine-tuned takes 1.40 of the unpruned network")
    assert notes_of([hard])[2].startswith("fine-tuned takes 1.40")


def test_a_page_holds_the_notes(points, tmp_path):
    points = [dataclasses.replace(each, notes=(f"note {i}",)) for i, each in enumerate(points)]
    write_front(points, tmp_path / "front.png", tmp_path / "front.html")
    assert "0.4 of the FLOPs: note 1" in (tmp_path / "front.html").read_text()

from ekg.report.table import Row, format_table


def rates(text):
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [line[head.index("rate")] for line in lines]


def test_rates_stand_against_the_first_row_or_the_unpruned_network():
    rows = [Row(name, 1.0, {"top1": 0.5, "top5": 0.9}, 10, flops, 1024, 1.0, 2.0)
            for name, flops in (("baseline", 400), ("fine-tuned", 180))]
    assert rates(format_table(rows)) == ["1.0000", "0.4500"]
    assert rates(format_table(rows[1:], whole_flops=400)) == ["0.4500"]

from ekg.report.table import Row, format_table


def test_the_table_names_costs_and_rates():
    row = Row("baseline", 0.5, 0.91234, 1.0, 1000, 2000, 2048, 1.5, 20.0)
    text = format_table([row, Row("slimmed", 0.6, 0.9, 0.99, 400, 900, 1024, 1.0, 10.0)])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["network", "loss", "top-1 %", "top-5 %", "params", "FLOPs", "rate", "file KiB", "ms, batch 1",
                        "ms, batch 256", "images/s"]
    assert lines[2] == ["baseline", "0.5000", "91.23", "100.00", "1,000", "2,000", "1.0000", "2", "1.50", "20.0", "12,800"]
    assert lines[3][:7] == ["slimmed", "0.6000", "90.00", "99.00", "400", "900", "0.4500"]

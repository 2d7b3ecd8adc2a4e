import pytest

from benchmarks import peers
from tests.analyses.helpers import make_run, run_analysis


@pytest.mark.parametrize("method", ["uniform", "scratch"])
def test_another_way_to_the_rate_is_trained_and_listed_in_the_tables(method, params, tmp_path):
    searched = (
        ["--searched", str(make_run(tmp_path / "run", params))] if method == "scratch" else []
    )
    argv = [
        method,
        *searched,
        "--arch",
        "ResNet-8",
        "--dataset",
        "DIGITS",
        "--trained_param",
        str(params / "one.pkl"),
        "--train_epoch",
        "1",
        "--batch_size",
        "32",
        "--finetune_teacher",
        "single",
        "--out",
        str(tmp_path / "out"),
    ]
    record = peers.main(peers.parse_args(argv))
    assert 0.2 < record.rate <= 0.45 and [row["name"] for row in record.table] == [
        "baseline",
        "slimmed",
        "fine-tuned",
    ]
    assert record.table[1]["loss"] != record.table[2]["loss"]
    assert (
        peers.main(peers.parse_args(argv)).table == record.table
    )  # the same command goes on, here from the end
    text = run_analysis("tables", tmp_path / "out")
    assert (
        f"| {peers.TITLES[method]} | 1 | 1 |" in text
        and f"`python -m benchmarks.peers {method} --arch ResNet-8" in text
    )


def test_only_the_method_scratch_needs_a_run(capsys):
    for argv in (["scratch"], ["uniform", "--searched", "run"]):
        with pytest.raises(SystemExit):
            peers.parse_args([*argv, "--trained_param", "p.pkl"])
        assert "--searched belongs to the method scratch" in capsys.readouterr().err

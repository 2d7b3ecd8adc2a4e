import pytest

from ekg.commands.networks import find_network
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.folder import RunFolder

CUT, TUNED = "slimmed_param.keras", "trained_param.keras"


@pytest.mark.parametrize(
    ("written", "choice", "expected"),
    [
        ([CUT], None, CUT),
        ([TUNED], {"name": "fine-tuned"}, TUNED),
        ([CUT, TUNED], {"name": "fine-tuned"}, TUNED),
        ([CUT, TUNED], {"name": "slimmed"}, CUT),
        ([TUNED], {"name": "slimmed"}, None),
        ([], None, None),
    ],
)
def test_a_run_folder_means_the_network_that_the_run_hands_out(tmp_path, written, choice, expected):
    """Where fine-tuning made it worse, that is the network before it, as in ekg.prune."""
    folder = RunFolder.create(tmp_path / "run", {})
    for name in written:
        (folder / name).write_bytes(b"")
    summary = {"table": []} if choice is None else {"table": [], "choice": choice}
    files.write_json(folder / "summary.json", summary)
    if expected is not None:
        assert find_network(folder.path) == folder / expected
        return
    with pytest.raises(EkgError, match="run: the run left no .keras file; is it finished?"):
        find_network(folder.path)

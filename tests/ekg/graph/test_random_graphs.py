"""What must hold of any network, on random ones: masked = cut = reloaded = counted, and a cut can
be cut again.
"""

import hypothesis
from hypothesis import strategies as st

from tests.programs.random_graphs import check, check_job, networks, networks_and_kinds


@hypothesis.settings(
    max_examples=28,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(model=networks(depth=6), seed=st.integers(0, 2**16))
def test_masked_cut_reloaded_and_counted_networks_agree(model, seed):
    check(model, seed)


@hypothesis.settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(drawn=networks_and_kinds(depth=2), seed=st.integers(0, 2**16))
def test_a_whole_job_shows_every_output_as_keras_measures_it(drawn, seed):
    check_job(*drawn, seed)

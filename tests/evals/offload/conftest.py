"""The results folder that the tests of the benchmark start from."""

import pytest
from offloaded_runs import write_results


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("offload"))

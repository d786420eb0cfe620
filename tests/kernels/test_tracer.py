"""The memory tracer, and what it says of the kernels: interpreted_tracer.py, in a process with TRITON_INTERPRET=1."""

import os
import subprocess
import sys

import pytest
from kernel_tracer import Trace
from repository import ROOT

from kernels.triton import launch


def test_traces_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/interpreted_tracer.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.skipif(launch.INTERPRETED, reason="kernels are interpreted in this process")
def test_compiled_kernels_cannot_be_traced():
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        Trace()

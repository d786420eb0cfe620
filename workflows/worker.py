"""What torchrun starts of a run that has several workers: torchrun ... -m workflows.worker results/cpu/runs/dense-xs-s0

Trains as `workflows.train` does and leaves without taking the interpreter down: threads of the exchange may still let go of
tensors then, for which they want an interpreter, and the process aborts after all its work is done.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from evals.records import errors
from workflows import train


def leave(code: object) -> NoReturn:
    """Ends the process with an exit code at once; what was printed is written out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    try:
        errors.run(train.main)
    except SystemExit as left:
        leave(left.code)
    except BaseException:
        traceback.print_exc()
        leave(1)


if __name__ == "__main__":
    main()

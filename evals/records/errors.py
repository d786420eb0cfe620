"""A user's mistake is one sentence: what, where, what to do. Everything else keeps its traceback."""

import errno
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake of the user or of the surroundings (offline, wrong checksum); the message is the whole report."""


def run(main: Callable[[], int | None]) -> None:
    """Call an entry point and exit: 0 or its return value, 2 for a `UserError` or a full disk, 130 for Ctrl-C.

    Raises:
        SystemExit: always, unless `main` raises something that is not the user's doing.
    """
    try:
        code = main() or 0
    except UserError as error:
        code = _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        code = _say("interrupted: stopped before the end; run the same command again to go on", 130)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stdout = None
        code = 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        code = _say(f"error: the disk is full{where}; free some space and run the same command again", 2)
    raise SystemExit(code)


def _say(message: str, code: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code

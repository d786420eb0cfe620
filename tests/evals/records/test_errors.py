"""The end of every command: one sentence for the user's errors, a traceback for ours."""

import errno

import pytest

from evals.records import errors
from evals.records.errors import UserError


def test_entry_point_keeps_foreign_errors_and_ends_on_interrupt(capsys):
    def raises(error):
        def main():
            raise error

        return main

    with pytest.raises(OSError, match="nope"):
        errors.run(raises(OSError(errno.EACCES, "nope")))
    with pytest.raises(ValueError, match="a bug"):
        errors.run(raises(ValueError("a bug")))
    for error, code in [(KeyboardInterrupt(), 130), (UserError("two\nlines"), 2)]:
        with pytest.raises(SystemExit) as exit_:
            errors.run(raises(error))
        assert exit_.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == "error: two lines"
    with pytest.raises(SystemExit) as exit_:
        errors.run(lambda: None)
    assert exit_.value.code == 0

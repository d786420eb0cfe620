"""The file that says when the rules were decided: what it may hold, and that the committed one is true of the repository."""

import pytest
import yaml

from evals.claims import decided
from evals.records.errors import UserError
from evals.records.provenance import git

RULES = dict.fromkeys(("thresholds", "contrasts", "exclusions", "seeds", "design"), "as written")
CHANGE = "{date: 2026-03-02T10:00:00+00:00, commit: abcdef1, what: a, why: b}"


def loaded(tmp_path, commit="'0123abcd'", date="2026-03-01T12:00:00+01:00", rules=RULES, changes="[]", more=""):
    path = tmp_path / "decided.yaml"
    told = yaml.safe_dump(rules, default_flow_style=True).strip()
    path.write_text(f"commit: {commit}\ndate: {date}\npreset: reference\nrules: {told}\nchanges: {changes}\n{more}")
    return decided.load(path)


def test_a_whole_file_is_read(tmp_path):
    found = loaded(tmp_path, changes=f"[{CHANGE}]")
    assert (found.commit, found.date.isoformat()) == ("0123abcd", "2026-03-01T12:00:00+01:00")
    assert [(change.commit, change.what, change.why) for change in found.changes] == [("abcdef1", "a", "b")]
    assert loaded(tmp_path, "null", "null").commit is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"commit": "null"}, "both null or neither"),
        ({"commit": "'not a hash'"}, "hexadecimal"),
        ({"commit": "1234567"}, "expected str"),
        ({"date": "2026-03-01"}, "expected datetime, found date"),
        ({"date": "2026-03-01T12:00:00"}, "no time zone"),
        ({"rules": RULES | {"seeds": " "}}, "seeds says nothing"),
        ({"rules": {"seeds": "3"}}, "missing thresholds"),
        ({"commit": "null", "date": "null", "changes": f"[{CHANGE}]"}, "not decided cannot have changed"),
        ({"changes": f"[{CHANGE.replace('-02T', '-01T')}]"}, "none before the rules"),
        ({"changes": f"[{CHANGE.replace('why: b', 'why: ')}]"}, "why: expected str"),
        ({"changes": f"[{CHANGE.replace('why', 'because')}]"}, "unknown key 'because'"),
        ({"more": "author: me\n"}, "unknown key 'author'"),
        ({"more": "- [\n"}, "cannot be read as YAML"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        loaded(tmp_path, **wrong)


def test_the_committed_file_is_true_of_the_repository():
    found = decided.load()
    commits = [found.commit, *(change.commit for change in found.changes)] if found.commit else []
    if not git("rev-parse", "HEAD") or git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("no history here to look a commit up in")
    for commit, date in zip(commits, [found.date, *(change.date for change in found.changes)], strict=False):
        assert git("log", "-1", "--format=%ct", commit) == str(int(date.timestamp())), commit

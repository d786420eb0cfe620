"""What the comparison tells: one sentence at the end, what one folder lacks, unusable input, exit status and files."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from pairs import changed, counted, folder, seeds
from repository import ROOT
from synthetic import row

from evals import compare
from evals.agreement.told import sentence
from evals.records.errors import UserError


def tuning(*settings):
    return [row("tuning", arch="dense", setting=f'{{"lr": {lr}}}', run=f"tune-{lr}", val_loss=4.0) for lr in settings]


def test_what_one_folder_holds_is_listed_and_not_held_against_it(tmp_path, capsys):
    """A fresh run has its winners' rows of tuning.csv, the reference the whole sweep."""
    a = folder(tmp_path / "a", tuning=tuning(0.1), train=[])
    (a / "train.csv").unlink()
    b = folder(tmp_path / "b", tuning=tuning(0.1, 0.2, 0.3))
    assert compare.main([str(a), str(b)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert f'only in {b}: tuning dense {{"lr": 0.2}} tune-0.2' in lines
    assert f"only in {b}: train (the whole table)" in lines
    assert last == (
        f"reproduced: all 6 losses agree to the last digit; {counted(a, b)} comparisons agree; "
        "in one folder only: 2 rows of tuning, all of train"
    )
    assert compare.main([str(b), str(a)]) == 0
    assert f"only in {b}: train (the whole table)" in capsys.readouterr().out


def test_not_reproduced_says_by_how_much(tmp_path):
    a, b = changed(tmp_path, "runs", test_loss=4.5, params=2)
    findings = compare.compare(a, b)
    n = counted(a, b)
    assert sentence(findings) == (
        f"not reproduced: 2 of {n} comparisons differ (runs 2); 5 of 6 losses agree; {n - 2} comparisons agree"
    )


def test_folders_that_share_no_run_reproduce_nothing(tmp_path):
    findings = compare.compare(seeds(tmp_path / "a", dense=[4.0]), seeds(tmp_path / "b", moe2=[4.0]))
    assert not compare.reproduced(findings)
    assert sentence(findings) == (
        "not reproduced: the two folders share no run that has a final loss; 0 comparisons agree; "
        "in one folder only: 2 rows of runs"
    )


def test_make_ends_with_the_sentence(tmp_path):
    """The tail of the Makefile's recipe, run on made-up results: 0 whatever it says, and not 0 if it can say nothing."""
    recipe = (ROOT / "Makefile").read_text().split("\nall: env\n")[1].split("\n\n")[0].replace("\\\n", "")
    tail = recipe.splitlines()[-1].strip().removeprefix("@")
    command = tail.replace("$(BIN)/python", sys.executable).replace("$(PRESET)", "cpu").replace("$$", "$")

    def ends(**replaced):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        folder(tmp_path / "results" / "reference")
        folder(tmp_path / "results" / "cpu", **replaced)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    same, other, unusable = ends(), ends(shift=1.0), ends(runs=[])
    assert (same.returncode, other.returncode) == (0, 0)
    assert same.stdout.splitlines()[-1].startswith("reproduced: all 6 losses agree to the last digit; ")
    assert other.stdout.splitlines()[-1].startswith("not reproduced: ")
    assert not same.stderr + other.stderr
    assert unusable.returncode != 0


def damage(path, how):
    runs = path / "runs.csv"
    if how == "missing folder":
        shutil.rmtree(path)
    elif how == "missing":
        runs.unlink()
    elif how == "truncated":
        runs.write_bytes(runs.read_bytes()[:-20])
    elif how == "cut train":
        (path / "train.csv").write_text((path / "train.csv").read_text()[:-3])
    elif how == "foreign":
        runs.write_text("model,loss\ngpt,3.2\n")
    elif how == "empty":
        runs.write_text("")
    elif how == "header only":
        runs.write_text(runs.read_text().splitlines()[0] + "\n")
    elif how == "binary":
        runs.write_bytes(b"\x89PNG\x00\xff\xfe\n")
    elif how == "twice":
        lines = runs.read_text().splitlines()
        runs.write_text("\n".join([*lines, lines[-1]]) + "\n")


@pytest.mark.parametrize(
    "how",
    ["missing folder", "missing", "truncated", "cut train", "foreign", "empty", "header only", "binary", "twice"],
)
@pytest.mark.parametrize("which", ["a", "b"])
def test_unusable_input_is_one_sentence_naming_the_file(tmp_path, how, which):
    folders = {name: folder(tmp_path / name) for name in "ab"}
    damage(folders[which], how)
    with pytest.raises(UserError) as error:
        compare.main([str(folders["a"]), str(folders["b"])])
    assert str(folders[which]) in str(error.value)
    assert "\n" not in str(error.value)


def test_exit_status_and_files(tmp_path):
    a, b = changed(tmp_path, "runs", val_loss=4.5, arch="<script>")
    b = b.rename(tmp_path / "<img src=x> & co")
    out = tmp_path / "out"

    def code(*arguments):
        command = [sys.executable, "-m", "evals.compare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert code(a, b, "--out", out).returncode == 1
    page = (out / "compare.html").read_text()
    assert "4.5" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<img" not in page
    assert page.count("&lt;img src=x&gt; &amp; co</th>") == 1
    assert not re.search(r"<[^>]*(src|href)=", page)
    lines = (out / "compare.csv").read_text().splitlines()
    assert lines[0] == "table,key,column,a,b,rule,status"
    assert any(line.endswith(",differ") for line in lines)
    broken = code(a, tmp_path / "nowhere")
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: ")
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.stderr

"""The report in a headless browser: read, clicked, typed into, saved from, printed, and heard by a screen reader."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from browser import Browser
from pages import BROWSER, copy_of, rewrite
from repository import ROOT
from synthetic_runs import store

from evals.records import schema
from evals.records.files import whole
from reports import build

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")
AXE = ("4.14.1", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c")
RUN = "ultramem-d64-s0"


@pytest.fixture(scope="module")
def url(results, tmp_path_factory) -> str:
    """A page of everything beside another folder, with curves and configs of its runs."""
    folder = tmp_path_factory.mktemp("clicks")
    here, there = copy_of(results, folder), Path(shutil.copytree(results, folder / "there"))
    store(here)
    rewrite(
        there / "runs.csv", "runs", lambda frame: frame.assign(test_loss=frame["test_loss"] + 0.2 * (frame["size"] == "d64"))
    )
    path = folder / "page.html"
    path.write_text(build.render(here, beside=there), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser(url, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as this:
        yield this


def visible(browser: Browser, selector: str) -> bool:
    return browser.js(f"""(() => {{
        const box = document.querySelector({json.dumps(selector)})?.getClientRects()[0];
        return Boolean(box) && box.height > 0 && box.top < innerHeight && box.bottom > 0;
    }})()""")


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_it_is_whole_and_without_a_complaint(url, tmp_path, width):
    with Browser(tmp_path, width) as browser:
        browser.open(url)
        sizes = """[...document.querySelectorAll("figure")].filter(figure => !figure.closest("details:not([open])")).map(
            figure => [...figure.querySelectorAll(".panels svg, table")].every(part => part.clientHeight > 5))"""
        drawn = browser.js(sizes)
        assert len(drawn) > 60
        assert all(drawn)
        assert browser.js("document.documentElement.scrollWidth") <= width
        browser.js("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.problems == []


def test_a_number_leads_to_the_section_of_its_run(browser, url):
    browser.open(url)
    assert not visible(browser, f"#run-{RUN} pre")
    browser.click(f'#losses a[href="#run-{RUN}"]')
    assert browser.js("location.hash") == f"#run-{RUN}"
    assert visible(browser, f"#run-{RUN} svg")
    text = browser.js(f"document.getElementById('run-{RUN}').innerText")
    assert f"snakemake --cores all results/synthetic/runs/{RUN}/runs.csv --config preset=synthetic adopt=false" in text
    assert "n_keys: 12" in text
    assert "the comparison" in text
    assert "there: test loss" in text


@pytest.mark.parametrize("script", [True, False], ids=["scripts", "no scripts"])
def test_a_deep_link_opens_what_a_run_is_folded_up_in(url, tmp_path, script):
    with Browser(tmp_path, script=script) as browser:
        browser.open(f"{url}#run-{RUN}")
        assert visible(browser, f"#run-{RUN} svg")
        assert visible(browser, f"#run-{RUN} .save") == script
        assert "Train it again" in browser.js("document.querySelector('details.run[open]').innerText")


def test_a_table_is_saved_as_csv_with_every_digit(browser, url, results):
    browser.open(url)
    saved = browser.save("#runs .tabled .save")
    assert re.fullmatch(r"copy-table-\d+\.csv", saved.name)
    rows = list(csv.DictReader(saved.read_text().splitlines()))
    runs = schema.read(results / "runs.csv", "runs").set_index("run")
    assert [row["run"] for row in rows] == list(runs.index)
    assert all(
        float(row["test_loss"] or "nan") == pytest.approx(runs.loc[row["run"], "test_loss"], nan_ok=True) for row in rows
    )
    assert rows[0]["config_sha"] == runs.iloc[0]["config_sha"]
    browser.click("#runs .tabled input")
    browser.write("pkm d128 s0")
    few = list(csv.DictReader(browser.save("#runs .tabled .save").read_text().splitlines()))
    assert 0 < len(few) < len(rows)
    assert all("pkm" in row["run"] for row in few)


def test_a_figure_is_saved_as_an_svg_of_its_own(browser, url):
    browser.open(url)
    saved = browser.save("#losses .picture .save")
    root = ElementTree.parse(saved).getroot()
    text = saved.read_text()
    assert "var(" not in text
    assert "#run-" not in text
    words = "".join(root.itertext())
    assert "UltraMemV2" in words
    assert "d256" in words
    panels = [part for part in root if part.get("viewBox", "").startswith("0 0")]
    places = {(part.get("x"), part.get("y")) for part in root}
    assert len(panels) == 3
    assert len(places) == len(list(root))
    assert float(root.get("width")) > 500
    browser.click(f'#losses a[href="#run-{RUN}"]')
    curve = browser.save(f"#run-{RUN} .save")
    assert curve.name == f"copy-{RUN}.svg"
    assert "validation" in "".join(ElementTree.parse(curve).getroot().itertext())


def test_it_can_be_used_from_the_keyboard(browser, url):
    browser.open(url)
    browser.press("Tab")
    assert browser.js("document.activeElement.textContent") == "Skip to the results"
    browser.press("Enter")
    assert browser.js("location.hash") == "#main"
    browser.js("document.querySelector('#claims th:nth-child(6) button').focus()")
    browser.press("Enter")
    browser.press("Space")
    assert browser.js("document.querySelector('#claims th:nth-child(6)').getAttribute('aria-sort')") == "descending"
    browser.js("document.querySelector('details.runs summary').focus()")
    browser.press("Enter")
    browser.press("Tab")
    browser.press("Space")
    assert browser.js("document.activeElement.parentElement.matches('details.run[open]')")


def test_verdicts_filter_the_ledger_and_a_column_sorts(browser, url):
    browser.open(url)
    rows = "[...document.querySelector('#claims table').tBodies[0].rows].filter(row => !row.hidden)"
    browser.click("#summary [data-verdict='not tested']")
    shown = browser.js(f"{rows}.map(row => row.cells[1].textContent)")
    assert 0 < len(shown) < 10
    assert {text.split(" ", 1)[1] for text in shown} == {"not tested"}
    browser.open(url)
    for order in (1, -1):
        browser.click("#claims th:nth-child(8) button")
        found = [float(text) for text in browser.js(f"{rows}.map(row => row.cells[7].textContent)") if text != "–"]
        assert found == sorted(found, reverse=order < 0)


def test_two_folders_stand_side_by_side(browser, url):
    browser.open(url)
    browser.click("nav a[href='#compared']")
    assert visible(browser, "#compared h2")
    said = browser.js("document.querySelector('#compared .answer').innerText")
    assert said.startswith("copy against there. Not reproduced:")
    heads = browser.js("[...document.querySelectorAll('#compared table')[0].tHead.rows[0].cells].map(cell => cell.innerText)")
    assert heads[:4] == ["architecture", "d64, copy", "d64, there", "difference"]
    cells = "[...document.querySelectorAll('#compared table')[0].tBodies[0].rows[0].cells].map(cell => cell.innerText)"
    assert [browser.js(cells)[place] for place in (3, 6)] == ["−0.200", "+0.000"]
    assert browser.js("document.querySelectorAll('#compared .panels svg').length") == 2
    rows = "[...document.querySelector('#compared figure:last-child table').tBodies[0].rows].filter(row => !row.hidden)"
    before = browser.js(f"{rows}.length")
    browser.click("#compared figure:last-child button[value='differ']")
    assert 0 < browser.js(f"{rows}.length") <= before
    assert browser.js(f"{rows}.every(row => row.cells[0].innerText === 'differ')")
    browser.click("#compared figure:last-child tr:not([hidden]) a[href^='#run-']")
    assert browser.js("document.querySelectorAll('details.run[open]').length") == 1


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core, from npm once and then from the cache."""
    version, known = AXE
    path = ROOT / f".cache/axe-core-{version}.min.js"
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm on the path, so no axe-core")
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", f"axe-core@{version}"], cwd=path.parent, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            pytest.skip(f"npm cannot bring axe-core {version}: {done.stderr.strip()[-200:]}")
        packed = path.parent / f"axe-core-{version}.tgz"
        with tarfile.open(packed) as tar, whole(path) as part:
            part.write_bytes(tar.extractfile("package/axe.min.js").read())
        packed.unlink()
    text = path.read_text(encoding="utf-8")
    assert hashlib.sha256(text.encode()).hexdigest() == known
    return text


@pytest.mark.parametrize(("scheme", "rules"), [("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")])
def test_axe_finds_no_violation(browser, url, axe, scheme, rules):
    browser.media(scheme=scheme)
    browser.open(f"{url}#run-{RUN}")
    # Rows repeat, and hundreds of them take minutes; of tables that scroll enough are left to do so.
    browser.js("document.querySelectorAll('tbody').forEach(body => [...body.rows].slice(6).forEach(row => row.remove()))")
    browser.js(axe + "; true")
    told = (
        "found.violations.map(one => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200), one.nodes[0].failureSummary])"
    )
    found = browser.js(f"axe.run({rules}).then(found => {told})")
    browser.media()
    assert found == []


def test_nothing_is_cut_off_on_paper(url, tmp_path):
    with Browser(tmp_path, 1016) as browser:  # what A4 on its side leaves between its margins
        browser.open(f"{url}#run-{RUN}")
        browser.media("print")
        assert browser.js("document.documentElement.scrollWidth") <= 1016
        on_paper = "filter(part => part.getClientRects().length"
        wide = f"""[...document.querySelectorAll("table, svg, pre, p, dl, figcaption")].{on_paper}
            && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 99))"""
        assert browser.js(wide) == []
        scrolls = f"""[...document.querySelectorAll(".scroll, pre")].{on_paper}
            && (part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1)).length"""
        assert browser.js(scrolls) == 0
        hover = "[...document.querySelectorAll('td[title]')].filter(cell => cell.title.includes(' '))"
        untold = "cell => getComputedStyle(cell, '::after').content.length <= cell.title.length"
        assert browser.js(f"{hover}.length") > 9
        assert browser.js(f"{hover}.filter({untold}).map(cell => cell.outerHTML)") == []
        shown = "[...document.querySelectorAll('details.run')].filter(part => part.getClientRects().length).length"
        assert browser.js(shown) == 1
        assert browser.js("document.querySelectorAll('nav, .save')[0].getClientRects().length") == 0
        assert browser.printed(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")

"""Parts of a rendered page, copies of a results folder, and the browser with what it is asked."""

import html
import re
import shutil
from pathlib import Path

from evals.records import schema

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def table(page: str, words: str) -> list[list[str]]:
    """The cells, as text, of the only table whose caption holds `words`."""
    (figure,) = (part for part in re.findall(r'<figure class="tabled.*?</figure>', page, re.S) if words in html.unescape(part))
    rows = re.findall(r"<tr.*?</tr>", figure, re.S)
    return [
        [html.unescape(re.sub("<.*?>", "", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
        for row in rows
    ]


def copy_of(results: Path, path: Path) -> Path:
    return Path(shutil.copytree(results, path / "copy"))


def rewrite(path: Path, table: str, change) -> None:
    schema.write(path, table, change(schema.read(path, table)))


PROBE_START = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
for (const level of ["error", "warn"]) console[level] = (...words) => problems.push(words.join(" "));
</script>"""
PROBE_END = """<script>
addEventListener("load", () => {
  const sized = figure => [...figure.querySelectorAll("svg, table")].every(part => {
    const box = part.getBoundingClientRect();
    return box.width > 5 && box.height > 5;
  });
  const figures = [...document.querySelectorAll("figure")];
  const claims = document.querySelector("#claims table"), first = () => claims.tBodies[0].rows[0].cells[7].textContent;
  claims.tHead.rows[0].cells[7].querySelector("button").click();
  claims.tHead.rows[0].cells[7].querySelector("button").click();
  const shown = () => [...claims.tBodies[0].rows].filter(row => !row.hidden).length;
  document.querySelector("[data-verdict='not tested']").click();
  const result = {
    problems, figures: figures.length, empty: figures.filter(figure => !sized(figure)).length,
    shown: shown(), first: first(),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
  };
  document.documentElement.dataset.result = JSON.stringify(result);
});
</script>"""

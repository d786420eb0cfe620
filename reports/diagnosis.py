"""The anomalies that the first reference results showed, each beside the experiment that settles it."""

from collections.abc import Iterator

from evals.claims.diagnosis import PREFIX
from reports.page import Cell, Results, Table, Text, kinds, number
from reports.style import interval

KINDS = {"bug mended": "reproduced", "finding": "chosen", "open": "not-tested"}


def diagnosis(results: Results) -> Iterator:
    """Question, verdict and reading of each topic, then its arms."""
    if "diagnosis" not in results:
        yield results.missing("diagnosis")
        return
    frame = results["diagnosis"]
    topics = frame.drop_duplicates("topic")
    counts = topics["verdict"].value_counts()
    counted = ", ".join(f"{counts[word]} {word}" for word in KINDS if word in counts)
    yield Text(f"{len(topics)} anomalies of the first reference results, each asked by an experiment: {counted}.")
    for topic in topics.itertuples():
        asked = topic.question or f"{_name(topic.topic).capitalize()}."
        yield Text(f"{asked} {topic.reading or 'Nobody has read these arms yet: open.'}")
    rows = []
    for row in frame.itertuples():
        links = tuple((run, href) for run in row.runs.split() if (href := results.href(run)))
        verdict = Cell(row.verdict, kind=KINDS[row.verdict])
        cells = [number(row.n, "d"), number(row.loss, ".3f"), number(row.delta, "+.3f")]
        cells += [Cell(interval(row.ci_low, row.ci_high, "+.3f")), verdict, Cell("" if links else "–", more=links)]
        rows.append([Cell(_name(row.topic)), Cell(row.label, title=row.arm), *cells])
    done = results.runs[results.runs["run"].isin(" ".join(frame["runs"]).split())]
    words = "Test loss of every arm, and its change against the base arm of its topic (the row without a change), paired by "
    words += "seed. With one seed there is no interval, and an effect below the spread over seeds is no effect."
    header = ["topic", "arm", "seeds", "test loss", "change", "95 % interval", "verdict", "runs"]
    yield Table("diagnosis.csv", words, results.context(done), header, rows, kinds(done["device"]), tall=True)


def _name(topic: str) -> str:
    return topic.removeprefix(PREFIX).replace("_", " ")

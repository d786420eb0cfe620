"""The section on forgetting: a sentence for each architecture, a table at equal learning, all rates, or why there is none."""

import pandas as pd
import pytest
from synthetic import grid_run, write
from synthetic_forgetting import WAYS, forgetting

from reports.forgetting import forgetting as section
from reports.forgetting import sentence
from reports.page import Results


def told(arch="ultramem", **made):
    return sentence(pd.DataFrame(forgetting(**made)), arch)


def test_slots_that_forget_less_more_and_about_as_much():
    assert told() == (
        "UltraMem forgets +0.410 by all parameters, +0.210 by LoRA, +0.060 by slots alone (nats on held-out text), slots alone "
        "against the better of the others −0.150 [−0.150 … −0.150], less; +31.0 by all parameters, +21.0 by LoRA, +11.0 by "
        "slots alone (points of the old facts), slots alone against the better of the others −10.0 [−10.0 … −10.0], less."
    )
    assert "+0.300 [+0.300 … +0.300], more" in told(ways=WAYS | {"slots": (0.5, 0.6)})
    rows = pd.DataFrame(forgetting())
    rows.loc[(rows.way == "slots") & (rows.seed == 1), ["text_change", "old_change"]] = [0.9, -0.9]
    assert sentence(rows, "ultramem").count("not told apart") == 2


def test_a_model_without_slots_one_seed_and_a_way_that_did_not_get_there():
    assert told("dense") == (
        "Dense forgets +0.410 by all parameters, +0.210 by LoRA (nats on held-out text); +31.0 by all parameters, +21.0 by "
        "LoRA (points of the old facts)."
    )
    assert "(one seed: undecided)" in told(seeds=1)
    assert told(short=[("ultramem", "slots", 1)]).endswith("(slots alone did not get there with every seed).")
    never = told(short=[("ultramem", "slots", seed) for seed in range(3)])
    assert never.startswith("UltraMem was not compared: no seed learned enough in every way (slots alone did not")


@pytest.fixture
def folder(tmp_path):
    runs = [grid_run(arch, "d64", seed) for arch in ("dense", "ultramem") for seed in range(3)]
    return write(tmp_path, runs=runs, forgetting=list(forgetting()))


def test_the_section_compares_where_the_ways_know_as_much(undrawn, folder):
    *told, picture, compared, rates = section(Results(folder))
    assert len(told) == 1 + 2
    assert "where the curve first knows 70% of the new facts" in told[0].text
    assert len(picture.panels) == 2 * 2
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in compared.rows}
    ways = ("all parameters", "LoRA", "slots alone")
    assert list(rows) == [("Dense", "all parameters"), ("Dense", "LoRA"), *(("UltraMem", way) for way in ways)]
    assert rows["UltraMem", "slots alone"][:5] == ["1,000", "0.003", "3 of 3", "9.0", "+0.060"]
    assert rows["UltraMem", "slots alone"][6] == "+11.0"
    assert len(compared.header) == len(compared.rows[0])
    assert len(rates.rows) == 5 * 3


def test_without_the_table_it_says_what_writes_it(folder):
    (folder / "forgetting.csv").unlink()
    (missing,) = section(Results(folder))
    assert "forgetting.csv is absent (“snakemake forgetting” writes it)" in missing.text

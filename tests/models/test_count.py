"""Our counts are the published ones to the printed digits; rows that no published width closes are named with the reason."""

import csv
import io
import subprocess
import sys

import pytest

from models import count

# name -> (activated millions, total billions, FLOPs G), as printed; None is not printed. P1 tables 1 and 2, P2 table 10.
PRINTED = {
    "Dense-151M": ("151.0", "0.15", "0.30"),
    "Dense-680M": (None, "0.68", "1.36"),
    "Dense-1.6B": (None, "1.61", None),
    "Dense-6.5B": (None, "6.44", "12.88"),
    "MoE-151M-2in32": (None, "2.04", "0.35"),
    "MoE-680M-2in33": (None, "8.95", None),
    "MoE-1.6B-2in34": (None, "21.36", None),
    "UltraMem-151M-x12": (None, "2.03", "0.35"),
    "UltraMem-680M-x12": (None, "8.93", "1.49"),
    "UltraMem-1.6B-x12": (None, "21.41", "3.50"),
    "PKM-151M-x10": ("173.01", None, None),
    "+half vdim+proj": ("178.47", None, None),
    "+split big mem&skip": ("161.64", None, None),
    "+query/key LN": ("161.64", None, None),
    "OLMoE-227M": (None, "1.18", None),
    "OLMoE-1B-7B": (None, "6.71", None),
    "UltraMemV2-227M": (None, "1.18", None),
}

# Printed figures that miss by a unit in the last place or by a stated part: name, figure -> printed, ours, why.
MISSED = {
    ("Dense-1.6B", "flops"): ("3.21", 3.2212, "12 L D^2 is 3.22; P1 truncates"),
    ("MoE-680M-2in33", "flops"): ("1.50", 1.5124, "the router, 1.2M; P1's inner width is a GAP fitted to the total"),
    ("MoE-1.6B-2in34", "flops"): ("3.52", 3.5277, "the router, 2.2M; without it 3.52"),
    ("+share query", "active"): ("173.46", 173.453, "rounding of the two terms that P1 adds"),
    ("+IVE", "active"): ("172.37", 172.361, "0.01M that no part of the layer explains (spec A.2)"),
    ("+query conv", "active"): ("172.38", 172.371, "the same 0.01M"),
    ("OLMoE-1B-7B", "active"): ("1070", 1075.9, count.OPEN["OLMoE-1B-7B"]),
    ("Memory+-227M", "active"): ("228", 241.4, count.OPEN["Memory+-227M"]),
    ("Memory+-227M", "total"): ("1.19", 1.1969, count.OPEN["Memory+-227M"]),
    ("UltraMem-227M", "active"): ("225", 228.7, count.OPEN["UltraMem-227M"]),
    ("UltraMem-227M", "total"): ("1.18", 1.1927, count.OPEN["UltraMem-227M"]),
    ("UltraMemV2-227M", "active"): ("225", 224.35, count.OPEN["UltraMemV2-227M"]),
    ("UltraMemV2-1B-7B", "total"): ("6.70", 6.217, count.OPEN["UltraMemV2-1B-7B"]),
}


@pytest.fixture(scope="module")
def rows():
    return {name: entry.row(name) for name, entry in count.entries().items()}


def figures(row):
    return {
        "active": row["active_params"] / 1e6,
        "total": row["total_params"] / 1e9,
        "flops": row["flops_per_token"] / 1e9,
    }


def as_printed(value, printed):
    return f"{value:.{len(printed.partition('.')[2])}f}"


@pytest.mark.parametrize("name", PRINTED)
def test_closes_to_the_printed_digits(rows, name):
    for value, printed in zip(figures(rows[name]).values(), PRINTED[name], strict=True):
        if printed is not None:
            assert as_printed(value, printed) == printed


@pytest.mark.parametrize(("name", "figure"), MISSED)
def test_what_does_not_close_is_known(rows, name, figure):
    printed, ours, why = MISSED[name, figure]
    value = figures(rows[name])[figure]
    assert value == pytest.approx(ours, rel=5e-4)
    assert as_printed(value, printed) != printed
    assert why


def test_sparse_parameters_of_the_ablation(rows):
    """P1 table 2."""
    sparse = [f"{rows[name]['sparse_params'] / 1e9:.3f}" for name in count.ablation_rows()]
    assert sparse == ["1.534", "1.529", "1.529", *["1.536"] * 6]


def test_tucker_and_cores_cost_nothing(rows):
    """P1: both split what is there; only the cores themselves, 3 layers x 2 heads x 4 numbers each, are new."""
    assert rows["+TDQKR"]["active_params"] - rows["+IVE"]["active_params"] == 24
    assert rows["+MCS"]["active_params"] - rows["+TDQKR"]["active_params"] == 24


def test_memory_share_of_v2_is_the_optimum_of_the_paper():
    assert count.entries()["UltraMemV2-227M"].model.cost().memory_share == pytest.approx(0.168, abs=0.002)


def test_command_prints_csv():
    done = subprocess.run([sys.executable, "-m", "models.count", "Dense-151M", "+IVE"], capture_output=True, text=True)
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [line["name"] for line in lines] == ["Dense-151M", "+IVE"]
    assert lines[0]["flops_per_token"] == "301989888"
    wrong = subprocess.run([sys.executable, "-m", "models.count", "Dense-9B"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no published model 'Dense-9B'" in wrong.stderr

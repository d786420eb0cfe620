"""A claim, its evidence and a grid of two architectures, made up, and what the ledger says of them."""

import math

from synthetic import grid_run, write

from evals.claims import ledger as claims
from evals.claims.claim import Claim
from evals.claims.evidence import Evidence, Results

LEDGER = claims.load()
GAP = {"metric": "loss_gap", "args": {"of": "a", "against": "b"}}


def claim(**fields):
    basis = {"id": "x", "paper": "P1", "statement": "s", "source": "t", "scale": "any"}
    effect = {"published": -0.1, "tolerance": 0.05, "direction": "below"}
    return Claim(**(basis | GAP | effect | fields))


def seeds(value, low, high, n=3, spread=math.nan):
    return Evidence(value, low, high, n, seeds=n, spread=spread, freedom=4)


def ledger_of(*entries):
    return claims.Ledger(entries, LEDGER.confounds, LEDGER.scales, {})


def judged(folder, entry):
    (found,) = claims.judge(ledger_of(entry), Results(folder))
    return found


def grid(folder, a, b, **values):
    runs = [grid_run("a", seed=s, val_loss=x, **values) for s, x in enumerate(a)]
    return write(folder, runs=runs + [grid_run("b", seed=s, val_loss=x, **values) for s, x in enumerate(b)])

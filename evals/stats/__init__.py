"""Differences with intervals, the noise of seeds, and straight lines through losses by seed."""

from evals.stats.crossing import zero_crossing
from evals.stats.fits import NotALaw, too_few
from evals.stats.intervals import Interval, difference, mean, share
from evals.stats.lines import line_r2, line_r2_interval, line_slope, line_weights, slope, slopes
from evals.stats.optimum import optimum
from evals.stats.seeds import Noise, Term, contrast, noise, seeds_needed

__all__ = [
    "Interval",
    "Noise",
    "NotALaw",
    "Term",
    "contrast",
    "difference",
    "line_r2",
    "line_r2_interval",
    "line_slope",
    "line_weights",
    "mean",
    "noise",
    "optimum",
    "seeds_needed",
    "share",
    "slope",
    "slopes",
    "too_few",
    "zero_crossing",
]

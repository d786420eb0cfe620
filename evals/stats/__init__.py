"""Differences with intervals, the noise of seeds, and scaling fits with bands."""

from evals.stats.crossing import zero_crossing
from evals.stats.fits import Fit, NotALaw, log_linear, power_law
from evals.stats.intervals import Interval, difference, mean, share
from evals.stats.lines import line_r2, line_r2_interval, line_slope, line_weights, slope, slopes
from evals.stats.optimum import optimum
from evals.stats.seeds import Noise, Term, contrast, noise, seeds_needed

__all__ = [
    "Fit",
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
    "log_linear",
    "mean",
    "noise",
    "optimum",
    "power_law",
    "seeds_needed",
    "share",
    "slope",
    "slopes",
    "zero_crossing",
]

"""Evidence for claims: what the tables of a results folder say about a loss, a score, a time or a count.

Every function marked `metric` can be named in claims.yaml. It returns `Evidence`: a value, an interval where the
results carry one, and the runs behind it; or it raises `NotTested` with the reason. Differences are left minus right,
losses (`test_loss`) in nats, scores in points, paired by seed. Intervals of losses come from seed noise pooled over every
config that was run with several seeds (`stats.noise`), those of other quantities from their own repeated seeds.

`METRICS` is whole once this package is imported. Nothing here needs a model or torch to be imported but the metrics of the
papers' models, so the report can use `times.speedups`.
"""

from evals.claims.evidence import counted, forgetting, laws, losses, scores, times
from evals.claims.evidence.results import METRICS, Evidence, NotTested, Results

__all__ = ["METRICS", "Evidence", "NotTested", "Results", "counted", "forgetting", "laws", "losses", "scores", "times"]

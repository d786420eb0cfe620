"""The sections of the report, first to last: each a function from `Results` to blocks.

No number is computed here beyond means, differences, ratios and sums of rows; fits and intervals are those of `evals.stats` and
of `fits.csv`, the decision chart's scores those of `evals.decode.decision`. A section whose CSV is absent says so.
"""

from reports.ablations import ablations
from reports.access import access
from reports.claims import claims
from reports.coordinates import coordinates
from reports.cost import cost
from reports.data import data
from reports.diagnosis import diagnosis
from reports.evaluations import evaluations
from reports.forgetting import forgetting
from reports.health import health
from reports.latency import latency
from reports.losses import losses
from reports.matched import matched
from reports.offload import offload
from reports.placebos import placebos
from reports.questions import questions
from reports.runs import runs
from reports.scale import scale
from reports.scaling import scaling
from reports.speed import speed
from reports.summary import summary
from reports.terms import terms
from reports.tuning import tuning

SECTIONS = (
    ("summary", "At a glance", summary),
    ("claims", "Claims ledger", claims),
    ("losses", "Loss at matched compute", losses),
    ("scaling", "Loss against cost", scaling),
    ("questions", "Questions nobody has answered", questions),
    ("placebos", "Placebos", placebos),
    ("forgetting", "Learning without forgetting", forgetting),
    ("ablations", "Ablations", ablations),
    ("diagnosis", "Anomalies settled", diagnosis),
    ("evaluations", "Evaluation", evaluations),
    ("latency", "Latency", latency),
    ("access", "Memory access", access),
    ("offload", "Tables larger than memory", offload),
    ("matched", "Matched compute", matched),
    ("speed", "Training speed", speed),
    ("health", "Health of sparse layers", health),
    ("tuning", "Equal tuning and sensitivity", tuning),
    ("coordinates", "Coordinate check", coordinates),
    ("scale", "The papers’ sizes on many GPUs", scale),
    ("cost", "Cost ledger", cost),
    ("data", "Data", data),
    ("terms", "Terms", terms),
    ("runs", "Runs", runs),
)

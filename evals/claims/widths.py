"""How activations grow with the width of a model: the slopes of the coordinate check (`workflows.coordinates`).

Apart from the measurement, so that the report reads them without torch.
"""

import numpy as np
import pandas as pd

from evals.records.errors import UserError

FLAT = 0.25  # the largest slope of log rms over log width that counts as flat: a factor of 1.2 as the width doubles


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Slope of log rms over log width of every arch, width_rule, step and where, and whether it counts as `flat`.

    Args:
        frame: rows of the table `coordinates`.

    Raises:
        UserError: there is only one width.
    """
    if frame.d_model.nunique() < 2:
        raise UserError(f"a slope over widths takes two widths or more, and there is only d_model {frame.d_model.iloc[0]}")
    keys, rows = ["arch", "width_rule", "step", "where"], []
    for key, group in frame.groupby(keys, sort=False):
        slope = np.polyfit(np.log(group.d_model), np.log(group.value), 1)[0]
        rows.append(dict(zip(keys, key, strict=True)) | {"slope": slope, "flat": bool(abs(slope) <= FLAT)})
    return pd.DataFrame(rows)

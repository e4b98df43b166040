"""What is usual for the key entity: a mean and a deviation of its own past values that outliers hardly move; compiled.

In: numeric values of its transactions in their order. Out: columns of feature vectors and a level; the state in the
floats of a row, changed in place: of each field weight, mean, variance and the time of the last unusual value.

Values count equally up to the hundredth, from then on each new one weighs a hundredth (exponential forgetting). From
the fourth value on one that lies further from the mean than 1.75 times its size is *unusual*, and counts as if it lay
just there; than three deviations, where the deviation is larger than the mean, as of values of either sign. So a mean
is raised by the first fraud of 9 times the usual amount by 1.75 / n of itself and not by 8 / n, and a card whose owner
comes into money is still followed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.catalogue import LEVEL_MAX, LEVEL_STEPS, USUAL_FLOATS
from features.uncounted import kernel_part

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_WEIGHT_MAX = 100.0
_TRUSTED = 3.0  # values from which on one can be unusual
_SHARE, _DEVIATIONS = 1.75, 3.0
_FLOOR = 0.1  # share of the mean's size that is added to a deviation: cards that always pay the same have none


@kernel_part
def usual(values: Floats, v: int, time: int, floats: Floats, u: int, fields: int, folds: bool, columns: Ints,
          out: Floats, o: int) -> int:  # fmt: skip
    """Write the columns of a transaction, then fold it if it is no repeat; returns its level.

    Parameters
    ----------
    values, v :
        Numeric values, and where those of the transaction begin; NaN is missing.
    floats, u :
        State, and where that of the row begins.
    columns : int64[fields, 3]
        Ratio to the mean, distance from the mean in deviations, seconds since the last unusual value.

    Returns
    -------
    int
        1 + the largest ratio of its values to the mean in 1/32, at most 255; 0 where there is no mean.
    """
    level = 0
    for k in range(fields):
        p, value = u + USUAL_FLOATS * k, values[v + k]
        weight, mean, last = floats[p], floats[p + 1], floats[p + 3]
        size, deviation = abs(mean), np.sqrt(floats[p + 2])
        ratio, zscore = np.nan, np.nan
        if weight > 0.0:
            spread = deviation + _FLOOR * size
            if mean != 0.0:
                ratio = value / mean
            if spread > 0.0:
                zscore = (value - mean) / spread
            if ratio == ratio:
                level = max(level, 1 + int(min(max(ratio, 0.0) * LEVEL_STEPS, LEVEL_MAX - 1.0)))
        out[o + columns[k, 0]] = ratio
        out[o + columns[k, 1]] = zscore
        out[o + columns[k, 2]] = max(time - last, 0.0) / 1000.0 if last > 0.0 else np.nan
        if folds and value == value:
            room = _SHARE * size if size >= deviation else _DEVIATIONS * deviation
            if weight >= _TRUSTED and room > 0.0:
                if abs(value - mean) > room:
                    floats[p + 3] = max(last, float(time))
                value = min(max(value, mean - room), mean + room)
            weight = min(weight + 1.0, _WEIGHT_MAX)
            off = value - mean
            floats[p] = weight
            floats[p + 1] = mean + off / weight
            floats[p + 2] = (1.0 - 1.0 / weight) * (floats[p + 2] + off * off / weight)
    return level

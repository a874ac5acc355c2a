"""The two real branches of Lambert's W that demand needs, faster than the complex one of SciPy.

Both start from a published or fitted approximation good to about four digits and apply one step of the fourth-order
iteration of Fritsch, Shafer and Crowley (Communications of the ACM 16, 1973), which leaves rounding error only.
"""

from __future__ import annotations

import numpy as np

from clear_ray.allocation.columns import FloatArray


def lambert_w0_of_e_times(q: FloatArray) -> FloatArray:
    """Return W0(e * q) for 0 < q <= 1: the w in (0, 1] with w * exp(w - 1) = q.

    The start is a rational function fitted to W0 on (0, e], relative error below 7e-5.
    """
    z = np.e * q
    start = z * (1.0 + z * (1.7174020963 + z * 0.37785707591))
    start /= 1.0 + z * (2.7174020963 + z * (1.6019102725 + z * 0.13820093521))
    return _fritsch_step(start, np.log(z / start) - start)


def minus_lambert_wm1_of_minus(q: FloatArray) -> FloatArray:
    """Return -W_{-1}(-q) for 0 < q <= 1/e: the y >= 1 with y * exp(-y) = q.

    The start is the approximation of Barry et al. (Mathematics and Computers in Simulation 53, 2000), relative error
    below 3e-4. At q = 1/e the branch point itself, y = 1, is returned.
    """
    log_q = np.log(q)
    sigma = np.maximum(-1.0 - log_q, 0.0)
    root = np.sqrt(sigma)
    bend = 0.3361 * np.sqrt(0.5) * root / (1.0 - 0.0042 * sigma * np.exp(-0.0201 * root))
    start = 1.0 + sigma + (2.0 / 0.3361) * (1.0 - 1.0 / (1.0 + bend))
    return np.where(sigma < 1e-14, 1.0, -_fritsch_step(-start, log_q - np.log(start) + start))


def _fritsch_step(w: FloatArray, residual: FloatArray) -> FloatArray:
    """Improve `w`, given `residual` = ln(x / w) - w; the error goes from e to about e**4."""
    one_more = 1.0 + w
    q = 2.0 * one_more * (one_more + (2.0 / 3.0) * residual)
    with np.errstate(divide="ignore", invalid="ignore"):  # only at the branch point, which the caller replaces
        return w * (1.0 + residual / one_more * (q - residual) / (q - 2.0 * residual))

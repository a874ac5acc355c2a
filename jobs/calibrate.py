r"""Entry of `ray job submit`: sample rollouts on queries with known answers and fit a head.

    ray job submit --working-dir . -- \
        python jobs/calibrate.py --config jobs/configs/demo_calibration.yaml \
        --set run_dir=/shared/runs/calibration --head-dir /shared/heads/mine

Takes what `clear-ray calibrate` takes.
"""

import sys

from clear_ray.cli import main

if __name__ == "__main__":
    main(["calibrate", *sys.argv[1:]])

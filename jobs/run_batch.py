"""Entry of `ray job submit`: answer one batch under its budget.

    ray job submit --working-dir . -- python jobs/run_batch.py --config jobs/configs/demo.yaml --set run_dir=/shared/runs/demo

Takes what `clear-ray run` takes and ends with its exit codes (see `clear_ray/cli.py`), which Ray keeps as the job's
`driver_exit_code`. Submitted again with the same configuration it goes on where the last job ended.
"""

import sys

from clear_ray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])

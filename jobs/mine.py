"""``rematch-ray mine`` as a job: ``ray job submit -- python jobs/mine.py ...``.

Takes the verb's arguments. The result is one JSON object, the last line of stdout: a submitted job
has no other way to return it.
"""

import sys

from rematch_ray.cli import main as run_verb


def main(argv: list[str]) -> int:
    """Run the verb with `argv`; returns its exit code."""
    return run_verb(["mine", *argv, "--json"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

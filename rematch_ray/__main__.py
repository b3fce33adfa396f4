"""``python -m rematch_ray <verb>``: the same as ``rematch-ray <verb>``."""

from rematch_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Renders the emoji shards that the package ships (about a minute, once per font version).

apt-get install fonts-noto-color-emoji unicode-data unicode-cldr-core && pip install emoji
python jobs/render_emoji.py --out rematch_ray/assets/emoji
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from rematch_ray.data.emoji import ASSETS
from rematch_ray.data.emoji_render import FONT, render, write_shards


def main() -> None:
    """Parse the arguments, render, write, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the shards")
    parser.add_argument("--font", type=Path, default=FONT, help="the colour font")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out parts")
    arguments = parser.parse_args()
    rows = render(seed=arguments.seed, font=arguments.font)
    files = write_shards(rows, arguments.out, seed=arguments.seed)
    size = sum(file.stat().st_size for file in files)
    counts = dict(Counter(row.split for row in rows))
    print(f"{len(rows)} emoji in {len(files)} shards, {size:,} bytes: {counts}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""`python -m scidiff.training CACHE [--out FOLDER] [--resume] [trainer.key=value ...]`: trains from a cache alone."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml

from scidiff.core.errors import ScidiffError, UsageError


def override(config: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Applies `a.b=value` assignments (YAML values) to existing keys of a plain config."""
    for text in assignments:
        key, equals, value = text.partition("=")
        *parents, last = key.split(".")
        node: Any = config
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not equals or not isinstance(node, dict) or last not in node:
            raise UsageError(f"{text!r} does not set a key of this training config.")
        node[last] = yaml.safe_load(value)
    return config


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scidiff.training", description=__doc__)
    parser.add_argument("cache", help="folder written by: scidiff train experiment=NAME prepare=FOLDER")
    parser.add_argument("--out", default="runs/training", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("overrides", nargs="*", help="trainer.max_steps=100 and the like")
    given = parser.parse_intermixed_args(arguments)
    try:
        from scidiff.training.cache import Cache
        from scidiff.training.loop import train

        cache = Cache.open(given.cache)
        override(cache.config, given.overrides)
        print(train(cache, given.out, resume=given.resume))
    except ScidiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Collect the settings and the seconds of each stage for the report."""

import argparse
import json
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, numbers as JSON")
    options = parser.parse_args()
    settings = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.set)}
    stages = sorted((options.run_dir / "done").iterdir(), key=lambda path: path.stat().st_mtime)
    write(options.run_dir / "settings.json", settings)
    write(options.run_dir / "timings.json", {path.name: int(path.read_text()) for path in stages})


def write(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()

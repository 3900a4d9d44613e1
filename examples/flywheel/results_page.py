"""Writes the results page of compare_tiny.sh from its cells: --gather RUN_DIR makes one JSON file of them, which is
committed, and from that file anybody makes the same page again."""

import argparse
import os
import tempfile
from pathlib import Path

from results.cells import gather, load
from results.page import Page

from megatron_remit.artifacts import write_whole
from megatron_remit.errors import UserError, cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gather", type=Path, metavar="RUN_DIR", help="first write the cells of RUN_DIR to --json")
    parser.add_argument("--add", action="store_true", help="with --gather: keep what --json has of other bases")
    parser.add_argument("--json", type=Path, default=Path("docs/results-tiny.json"), help="all cells in one file")
    parser.add_argument("--out", type=Path, default=Path("docs/results-tiny.md"), help="the page; its figures go there")
    parser.add_argument("--commits", default="", help="of the runs, such as 'c91947b to 5938f30', for the page")
    options = parser.parse_args()
    if not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: the folder {options.out.parent} does not exist; create it")
    if options.add and not options.gather:
        raise UserError("--add: nothing to add; say which runs with --gather RUN_DIR")
    if options.gather:
        gather(options.gather, options.json, options.commits, options.add)
    cells = load(options.json)
    # Drawn elsewhere and renamed at the end: a run that is killed on the way leaves the old page with its old figures.
    with tempfile.TemporaryDirectory(prefix=f".{options.out.stem}-", dir=options.out.parent) as drawn:
        text = Page(cells, Path(drawn) / options.out.name).text()
        for figure in Path(drawn).iterdir():
            os.replace(figure, options.out.with_name(figure.name))
    write_whole(options.out, text)
    print(f"wrote {options.out} from {options.json}")


if __name__ == "__main__":
    cli(main)

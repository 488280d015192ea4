"""Report lines of more than 100 characters and long cells: `python tools/report.py [PATHS]`.

A report, not a gate: it helps to find what is hard to read, and fails for nothing.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WIDTH, LINES = 100, 25  # characters in a line, lines in a cell of code


def code(path):
    """The pieces of code in a file: its one text, or the cells of a notebook without captions and other options"""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return [text]
    cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return ["".join(line for line in cell if not line.startswith("#|")) for cell in cells]


def row(path):
    """Lines of code, how many are wide, the widest, and the lines of cells that are long"""
    parts = [p.splitlines() for p in code(path)]
    widths = [len(line) for part in parts for line in part]
    long = [len(p) for p in parts if len(p) > LINES] if path.suffix == ".ipynb" else []
    return len(widths), sum(w > WIDTH for w in widths), max(widths, default=0), sorted(long)[::-1]


def main(names):
    """Print a row for each file that has something to report"""
    found = [p for folder in ("nbs", "tests", "tools", "benchmarks")
             for p in sorted((ROOT / folder).rglob("*")) if ".ipynb_checkpoints" not in p.parts]
    paths = [Path(n).resolve() for n in names]
    if not paths: paths = [p for p in found if p.suffix in (".py", ".ipynb")]
    print(f"{'file':50} lines  over {WIDTH}  widest  cells over {LINES} lines")
    for path in paths:
        lines, wide, widest, cells = row(path)
        name = path.relative_to(ROOT).as_posix()
        if wide or cells: print(f"{name:50} {lines:5} {wide:9} {widest:7}  {cells or ''}")


if __name__ == "__main__": main(sys.argv[1:])

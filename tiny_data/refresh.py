"""Make again what is generated: README's picture and table of mechanisms, the notebook's outputs.

    python -m tiny_data.refresh                     all of it; the notebook takes some minutes
    python -m tiny_data.refresh picture table       only these

The table stands in README.md between the lines START and END; without them it is printed.
"""

import subprocess
import sys
from pathlib import Path

from . import SCHEMES
from .notebook import cells, pictures
from .notebook.looks import look

ROOT = Path(__file__).parent.parent
PICTURE = "space joint divided axial local_global window mixing shifted_windows".split()
START, END = "<!-- mechanisms: python -m tiny_data.refresh table -->", "<!-- end of mechanisms -->"


def picture(path=ROOT / "tiny_data" / "who_attends_to_whom.png"):
    """What one patch attends to in eight schemes."""
    path.write_bytes(pictures.sheet(PICTURE, grid=(4, 6, 8), query=(1, 2, 3)).shot)


def table(path=ROOT / "README.md"):
    """A row for each scheme: words of looks.py, costs of one layer as torch counts them."""
    lines = ["| `attention=` | from | what a patch attends to | 8 frames | 32 frames |"]
    lines.append("|---|---|---|---:|---:|")
    for name in SCHEMES:
        costs = [f"{cells.giga_macs(name, (T, 14, 14)):.1f}" for T in (8, 32)]
        lines.append(" | ".join([f"| `{name}`", look(name).paper, look(name).words, *costs]) + " |")
    text, rows = path.read_text(), "\n".join(lines)
    if START not in text or END not in text:
        return print(f"{path.name} has no lines {START} and {END}; between them belongs\n{rows}")
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(f"{before}{START}\n{rows}\n{END}{after}")


def notebook():
    words = "-m jupyter nbconvert --to notebook --execute --inplace tutorial.ipynb"
    subprocess.run([sys.executable, *words.split()], cwd=ROOT, check=True)


if __name__ == "__main__":
    parts = {"picture": picture, "table": table, "notebook": notebook}
    for name in sys.argv[1:] or parts:
        parts[name]()

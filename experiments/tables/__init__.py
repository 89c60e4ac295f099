"""One-file-a-table experiments: arms x seeds, trained, judged once on the test split, and written up.

A recipe (`experiments/mguit_ablation.py`) names its arms, what they are judged on, the arm that the others are compared with, and
the orderings it expects; the rest is here:

    table.py    what a recipe says: `Arm`, `Claim`, `Bound`, `Table`; and `run_table`, which does it
    command.py  the command line, the same for every table
    jobs.py     which runs there are, where each lies, how each stands
    runs.py     training: resumable, in this process, in several, or on Ray
    stages.py   runs that start from other runs of the table, and what is built between them
    suites.py   what a run is judged on and by: the promise, and the suite of translations between two domains
    rows.py     judging: rows of numbers, and values by picture
    numbers.py  means over seeds with intervals, paired differences, what held
    report.py   the page

Everything lies in `<storage>/<table>...`: `.md` the page, `.parquet` a row a number, `-pictures.parquet` the values by picture,
`-<setting>.png` pictures, and a folder with the runs. The same command again does what is missing.
"""

from experiments.tables.command import main
from experiments.tables.table import Arm, Bound, Claim, OnRay, Table, run_table

__all__ = ["Arm", "Bound", "Claim", "OnRay", "Table", "main", "run_table"]

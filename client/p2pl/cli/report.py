"""`p2pl report`: pictures and tables of runs."""

from pathlib import Path
from typing import Annotated

import typer

from p2pl.cli.app import extra


def report(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories of `p2pl join`, or one directory of `p2pl simulate --out`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the pictures and the tables into.")],
) -> None:
    """Draw pictures and write tables of what happened in runs.

    They show the task's metrics by round, who trusted whom, the confusion matrix, bytes by peer,
    and scores by class.
    """
    with extra("report"):
        from rich.console import Console

        from p2pl.report.run import report_tables, write_report
        from p2pl.report.simulation import (
            check_is_over,
            is_simulation,
            simulation_tables,
            write_simulation_report,
        )
    if len(run_dirs) == 1 and is_simulation(run_dirs[0]):
        simulated = write_simulation_report(run_dirs[0], out)
        Console().print(simulation_tables(simulated))
        print(f"page {simulated.page}")
        return
    for one in run_dirs:
        check_is_over(one)
    written = write_report(run_dirs, out)
    Console().print(report_tables(written))
    print(f"page {written.page}")

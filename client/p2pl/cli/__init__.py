"""The command line: a thin user of `p2pl.api`, a module for each group of commands.

Heavy modules are imported inside the commands, so that `p2pl --help` is instant and a missing extra
is explained.
"""

from p2pl.cli import afterwards, create_inspect, join, partition, privacy, report, simulate
from p2pl.cli.app import Command, app, main

__all__ = ["app", "main"]

# In the order in which `p2pl --help` lists them.
for _command in (
    create_inspect.create,
    create_inspect.inspect,
    join.join,
    simulate.simulate,
    partition.partition,
    privacy.privacy,
    privacy.audit,
    report.report,
    afterwards.evaluate,
    afterwards.predict,
    afterwards.export,
):
    app.command(cls=Command)(_command)

"""The command line: a thin user of `p2pl.api`, a module for each group of commands.

Heavy modules are imported inside the commands, so that `p2pl --help` is instant and a missing extra
is explained.
"""

from p2pl.cli import (
    afterwards,
    check,
    create_inspect,
    join,
    ledger,
    partition,
    privacy,
    private,
    report,
    simulate,
    watch,
)
from p2pl.cli.app import Command, app, main

__all__ = ["app", "main"]

# In the order in which `p2pl --help` lists them; by another name where Python has that one.
for _command, _name in (
    (create_inspect.create, None),
    (create_inspect.inspect, None),
    (check.check, None),
    (join.join, None),
    (private.show_id, "id"),
    (private.invite, None),
    (private.revoke, None),
    (simulate.simulate, None),
    (watch.watch, None),
    (partition.partition, None),
    (privacy.privacy, None),
    (privacy.audit, None),
    (report.report, None),
    (afterwards.evaluate, None),
    (afterwards.predict, None),
    (afterwards.export, None),
):
    app.command(_name, cls=Command)(_command)
app.add_typer(ledger.group, name="ledger")

"""What is told of rules: ``headrace rules check``.

In: a file of rules, the schema. Out: a table on standard output. No state.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from features.catalogue import build_catalogue
from features.rules import Rules
from features.schema import TransactionSchema


def check(file: Path, schema: TransactionSchema) -> None:
    """Print what each rule does and reads.

    Raises
    ------
    SettingsError
        With every problem of the file.
    """
    rules = Rules.load(file, build_catalogue(schema))
    table = Table("rule", "action", "priority", "reads", box=None, header_style="bold")
    for rule in rules.rules:
        action = f"{rule.action} (shadow)" if rule.shadow else rule.action
        table.add_row(rule.name, action, str(rule.priority), ", ".join(rule.reads))
    console = Console(soft_wrap=True)
    console.print(table)
    lists = "".join(f"; list {name} of {of}" for name, of in rules.lists.items())
    console.print(f"{file}: {len(rules)} rules, version {rules.version}{lists}", highlight=False)

"""Statements of SQLAlchemy Core, compiled once and handed to the driver as text and values.

For what is done with every alert and every attempt. A statement is written in Core, once for both
databases, and its types convert the values, as ever; left out is what SQLAlchemy does anew at each
execution: to look the statement up, to collect its parameters, to wrap its rows. That takes longer
than all that the database does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_Converters = list[tuple[int, Callable[[Any], Any]]]
Values = Mapping[str, Any]


class Prepared:
    """A statement for one database."""

    def __init__(self, statement: Any, names: Iterable[str] | None, dialect: sa.Dialect) -> None:
        """Compile it; `names` are its parameters: for an INSERT the columns that it sets.

        They are those that the statement names and gives no value, if that is None.
        """
        keys = None if names is None else [*names]
        compiled = statement.compile(dialect=dialect, column_keys=keys)
        self._constants = {
            name: one.value for name, one in compiled.binds.items() if not one.required
        }
        free = compiled.params.keys() - self._constants.keys()
        if keys is not None and free != {*keys}:
            raise ValueError(f"the statement's parameters are {sorted(free)}")
        self._number = len(free)
        self._text = str(compiled)
        self._is_positional = compiled.positional
        self._names: list[str] = compiled.positiontup or [*compiled.params]
        parameters = [compiled.binds[name].type.dialect_impl(dialect) for name in self._names]
        self._bound = _converters([one.bind_processor(dialect) for one in parameters])
        columns = [one.type.dialect_impl(dialect) for one in statement.exported_columns]
        self._found = _converters([one.result_processor(dialect, None) for one in columns])

    def execute(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute it once for each of the rows, all with the same names; there must be one."""
        if len(rows[0]) != self._number:
            raise ValueError(f"the statement takes {self._names}, not {[*rows[0]]}")
        connection.exec_driver_sql(self._text, [self._values(row) for row in rows])

    def fetch(self, connection: Connection, values: Values) -> list[list[Any]]:
        """Return the rows that a query finds."""
        found = [list(row) for row in connection.exec_driver_sql(self._text, self._values(values))]
        for row in found:
            for place, convert in self._found:
                row[place] = convert(row[place])
        return found

    def _values(self, row: Values) -> Any:
        if self._constants:
            row = {**self._constants, **row}
        values = [row[name] for name in self._names]
        for place, convert in self._bound:
            values[place] = convert(values[place])
        return tuple(values) if self._is_positional else dict(zip(self._names, values, strict=True))


@lru_cache(maxsize=64)
def prepared(statement: Any, dialect: sa.Dialect, names: tuple[str, ...] | None = None) -> Prepared:
    """Return a statement of a module, prepared at its first use on a database."""
    return Prepared(statement, names, dialect)


def _converters(processors: Sequence[Any]) -> _Converters:
    return [(place, convert) for place, convert in enumerate(processors) if convert is not None]

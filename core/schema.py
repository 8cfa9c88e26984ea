"""What a model was trained on, column by column (contract, section 7)."""

from collections.abc import Collection, Sequence

import pyarrow as pa

from core.encoding import Encoder
from core.table import ColumnInfo
from core.table.columns import dtype_of


def column_infos(table: pa.Table) -> list[ColumnInfo]:
    """Name, dtype and null count of each column."""
    return [
        ColumnInfo(field.name, dtype_of(field), column.null_count)
        for field, column in zip(table.schema, table.columns, strict=True)
    ]


def describe(
    infos: Sequence[ColumnInfo],
    encoder: Encoder,
    *,
    target_column: str,
    classes: Sequence[object] | None,
    excluded: Collection[str],
) -> dict[str, object]:
    """The ``schema`` of a bundle.

    The role of a column is ``target``, ``feature``, ``excluded`` by the request, or ``ignored`` because it
    tells nothing.
    """
    features = {column.name: column for column in encoder.columns}

    def shown(info: ColumnInfo) -> dict[str, object]:
        feature = features.get(info.name)
        role = "target" if info.name == target_column else "excluded" if info.name in excluded else "ignored"
        categories = {"categories": list(feature.categories)} if feature and feature.categories else {}
        return {
            "name": info.name,
            "dtype": info.dtype,
            "role": "feature" if feature else role,
            "null_count": info.null_count,
            **categories,
        }

    return {
        "columns": [shown(info) for info in infos],
        "target": target_column,
        "classes": None if classes is None else list(classes),
    }

"""Tables to float32 feature matrices, and the state that encodes one row at prediction as training did."""

from core.encoding.columns import ColumnKind, ColumnSpec
from core.encoding.encoder import Encoder
from core.encoding.reading import Column
from core.encoding.writing import Encoded

__all__ = ["Column", "ColumnKind", "ColumnSpec", "Encoded", "Encoder"]

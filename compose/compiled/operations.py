"""C++ of torch's operations on the tensors of one row: the files that fill :data:`OPERATIONS`.

Results are as torch's, NaN and infinities included; sums are taken in another order. What is not in the table makes
:func:`~boltzmix.compose.compiled.lower.lower` refuse the graph. Their arrows: table ← pointwise ← views ← copies ←
indexing, and views ← reductions ← products.
"""

from boltzmix.compose.compiled import copies, indexing, pointwise, products, reductions, views
from boltzmix.compose.compiled.table import OPERATIONS

__all__ = ["OPERATIONS", "copies", "indexing", "pointwise", "products", "reductions", "views"]

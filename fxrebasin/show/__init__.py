"""A spec for people: a table, graphs (networkx, DOT, Mermaid), one HTML page.

Networks repeat themselves, so groups that differ in nothing but the numbers of their layer are shown as one
row, with a * for the number. Names come from the user's model: whatever they hold is shown as text.

To be read in this order: `row` (groups alike), `fact` (what is said beside them), then the forms: `text`,
`graph`, `page`.
"""
from .fact import Reason, reasons
from .graph import to_dot, to_mermaid, to_networkx
from .page import to_html
from .row import Row, rows
from .text import renderable, table

__all__ = ["Reason", "Row", "reasons", "renderable", "rows", "table", "to_dot", "to_html", "to_mermaid",
           "to_networkx"]

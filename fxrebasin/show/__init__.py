"""A spec for people: a tree, a table, graphs (networkx, DOT, Mermaid), one HTML page.

Networks repeat themselves, so groups that differ in nothing but the numbers of their layer are shown as one
row, with a * for the number. Names come from the user's model: whatever they hold is shown as text.

To be read in this order: `row` (groups alike), `fact` (what is said beside them), `reason` (why the rest stays),
`outline` (modules, folded), then the forms: `tree` (for a terminal), `text` (a table), `graph`, `page`.
"""
from .graph import to_dot, to_mermaid, to_networkx
from .page import fragment, to_html
from .reason import Reason, advice, reasons
from .row import Row, rows
from .text import renderable, table
from .tree import WIDTH, tree

__all__ = ["Reason", "Row", "WIDTH", "advice", "fragment", "reasons", "renderable", "rows", "table", "to_dot",
           "to_html", "to_mermaid", "to_networkx", "tree"]

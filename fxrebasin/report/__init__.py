"""What an alignment of two states did: cosines before and after, beside what chance gives; what moved; what is weak.

To be read in this order: `measure` (the figures), `text` (a table), `page` (one HTML page).
"""

from .measure import GroupRow, Kind, Report, TensorRow, report

__all__ = ["GroupRow", "Kind", "Report", "TensorRow", "report"]

"""Reports: one HTML file that stands alone, and every picture of it as PNG and SVG."""

from undiffuse.report.run import check, to_html, write
from undiffuse.report.words import fewer_measured, likelihood_rows, protocol, rows_of, three_numbers, value_of

__all__ = [
    "check",
    "fewer_measured",
    "likelihood_rows",
    "protocol",
    "rows_of",
    "three_numbers",
    "to_html",
    "value_of",
    "write",
]

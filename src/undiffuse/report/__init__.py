"""Reports: one HTML file that stands alone, and every picture of it as PNG and SVG."""

from undiffuse.report.run import to_html, write
from undiffuse.report.words import likelihood_rows, protocol, rows_of, three_numbers, value_of

__all__ = ["likelihood_rows", "protocol", "rows_of", "three_numbers", "to_html", "value_of", "write"]

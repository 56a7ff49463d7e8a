"""What an evaluation found as a page that one can mail: numbers, plots and pictures in one file.

Pure functions of plain data and pictures; nothing here draws a sample or measures anything.
"""

from fluxsmith.evaluation.report.compare import write_comparison
from fluxsmith.evaluation.report.gallery import Gallery
from fluxsmith.evaluation.report.page import write_report

__all__ = ["Gallery", "write_comparison", "write_report"]

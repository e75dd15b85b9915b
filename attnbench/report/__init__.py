"""Records -> tables, figures and a page. Pure: reads no file, measures nothing and never imports torch."""

from attnbench.report.against import Comparison, Margins, compare
from attnbench.report.documents import readme_block, replace_block, section_block
from attnbench.report.frames import Frame, accuracy_frames, comparison_frames
from attnbench.report.render import render_changes, render_terminal
from attnbench.report.writing import Report, terminal_tables, write_report

__all__ = [
    "Comparison",
    "Frame",
    "Margins",
    "Report",
    "accuracy_frames",
    "compare",
    "comparison_frames",
    "readme_block",
    "render_changes",
    "render_terminal",
    "replace_block",
    "section_block",
    "terminal_tables",
    "write_report",
]

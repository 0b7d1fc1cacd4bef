"""What people look at: the page of a run, the page of a comparison, their figures and pictures, the model's graph.

Numbers come in ready; nothing is estimated here that :mod:`inference.checking` or
:mod:`inference.clustering` could say.
"""

from inference.reporting.comparison_page import compare_report as compare_report
from inference.reporting.graph import model_graph as model_graph
from inference.reporting.live import LivePlot as LivePlot
from inference.reporting.run_page import report as report

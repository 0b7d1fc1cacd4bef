"""The figures of the inference gap show the numbers of its table."""

import numpy as np
import pandas as pd

from inference.reporting.gap_figures import gap_bars, gap_by_datum
from inference.reporting.sections import gap_panels


def table(n=3, lost=()):
    frame = pd.DataFrame({"approximation": np.full(n, 0.25), "amortisation": np.linspace(0.5, 1.0, n)})
    frame["total"] = frame["approximation"] + frame["amortisation"]
    for name in ("total", "approximation", "amortisation"):
        frame[f"{name}_se"] = 0.01
    return frame.assign(trusted=[i not in lost for i in range(n)])


def test_bars_end_at_the_total_and_name_what_was_left_out():
    figure = gap_bars({"one": table(), "two": table(lost=(0,))})
    (axis,) = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    np.testing.assert_allclose(ends, [0.25, 0.25, 1.0, 0.25 + 0.875])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two\n(1 left out)"]


def test_data_without_a_reference_have_their_own_colour():
    (axis,) = gap_by_datum(table(lost=(1,))).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["datum", "log p(x) not to be trusted"]
    assert len(gap_by_datum(table()).axes[0].get_legend().get_texts()) == 1


def test_the_report_has_the_figure_only_where_it_was_asked_for():
    assert gap_panels(None) == []
    (panel,) = gap_panels(table(lost=(2,)))
    assert "0.25 nats per datum are lost by the family" in panel.caption and "0.62 by the encoder" in panel.caption
    assert panel.draw().axes

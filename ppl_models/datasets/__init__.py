"""Named data with provenance, factors and checksums; procedural facets. Nothing is read or downloaded on import.

    from ppl_models import datasets
    x, factors = datasets.load("digits", "train", n=500)
    datasets.info("fashion_mnist").how_to_get

The table of sets, the layout of your own files and the licences are in the README beside this file.
"""

from ppl_models.datasets.catalogue import info as info, load as load, names as names
from ppl_models.datasets.describe import Info as Info
from ppl_models.datasets.download import HuggingFace as HuggingFace, OpenML as OpenML, fetch as fetch
from ppl_models.datasets.facets import facet_factors as facet_factors, render_facets as render_facets
from ppl_models.datasets.locate import DataMissingError as DataMissingError
from ppl_models.datasets.table_files import read_table as read_table
from ppl_models.datasets.tables import (
    Table as Table,
    decode_frame as decode_frame,
    encode_frame as encode_frame,
    table as table,
)

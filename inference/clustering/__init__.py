"""Clusterings read off a posterior: scored against known factors, and beside classical clusterings of the same K.

Any program with sites ``resp_<facet>`` (responsibilities of K clusters) has clusterings, one a facet; a datum belongs
to the cluster of its largest responsibility, averaged over the draws of q(z | x).

    scores, cross_facets      facets against known factors, and against each other
    clustering_baselines      k-means and mixtures of the same K, in the same columns
    stability, choose         what can be said without labels: agreement of seeds, choice of configuration and run
    accuracy, ...             the measures, on label vectors; defined in :mod:`inference.clustering.metrics`
"""

from inference.clustering.agreement import Stability as Stability, stability as stability
from inference.clustering.choice import RULE as RULE, Choice as Choice, Run as Run, choose as choose
from inference.clustering.classical import (
    clustering_baselines as clustering_baselines,
    plain_numbers as plain_numbers,
)
from inference.clustering.metrics import (
    accuracy as accuracy,
    adjusted_rand as adjusted_rand,
    calibration_error as calibration_error,
    clusters_used as clusters_used,
    contingency as contingency,
    effective_clusters as effective_clusters,
    hits as hits,
    hungarian_accuracy as hungarian_accuracy,
    labelled as labelled,
    majority as majority,
    normalised_mutual_information as normalised_mutual_information,
    weighted_accuracy as weighted_accuracy,
)
from inference.clustering.scoring import (
    PREFIX as PREFIX,
    active_units as active_units,
    cross_facets as cross_facets,
    responsibilities as responsibilities,
    scores as scores,
    side_by_side as side_by_side,
)

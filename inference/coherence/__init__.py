"""Is a predictive rule Bayesian?  Martingale and exchangeability checks of any ``ppl_models.program.Predictor``."""

from inference.coherence.betting import Bets as Bets, bet as bet, bets_on as bets_on
from inference.coherence.calibrated import (
    calibrated_tests as calibrated_tests,
    drift_curve as drift_curve,
    drift_test as drift_test,
)
from inference.coherence.confidence import confidence_sequence as confidence_sequence
from inference.coherence.descriptions import (
    DESCRIPTIONS as DESCRIPTIONS,
    Descriptions as Descriptions,
    Told as Told,
    compare_rules as compare_rules,
    description as description,
    tell as tell,
)
from inference.coherence.gap import one_step_gap as one_step_gap
from inference.coherence.host import InProcess as InProcess, host_tree as host_tree
from inference.coherence.martingale import (
    context_variance as context_variance,
    martingale_posterior as martingale_posterior,
)
from inference.coherence.paths import Paths as Paths, paths_tree as paths_tree, predictive_paths as predictive_paths
from inference.coherence.prequential import (
    prequential as prequential,
    prequential_rows as prequential_rows,
    watch as watch,
)
from inference.coherence.published import (
    BernoulliReference as BernoulliReference,
    GaussianReference as GaussianReference,
    falck2024 as falck2024,
)
from inference.coherence.real_tree import RealTree as RealTree, quadrature_tree as quadrature_tree
from inference.coherence.report import Coherence as Coherence, coherence as coherence, published as published
from inference.coherence.scaling import Scaling as Scaling, uncertainty_scaling as uncertainty_scaling
from inference.coherence.studies import (
    STUDIES as STUDIES,
    Study as Study,
    check_study as check_study,
    martingale_study as martingale_study,
    run_study as run_study,
    scaling_study as scaling_study,
)
from inference.coherence.tree import Tree as Tree, exact_tree as exact_tree, tree_table as tree_table
from inference.coherence.trees import pit_tree as pit_tree, reference_tree as reference_tree

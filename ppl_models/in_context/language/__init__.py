"""Language models as in-context predictors, behind any completions endpoint of the OpenAI protocol."""

from ppl_models.in_context.language.endpoint import Endpoint as Endpoint, EndpointError as EndpointError
from ppl_models.in_context.language.formats import (
    BERNOULLI as BERNOULLI,
    GAUSSIAN as GAUSSIAN,
    RECORDS as RECORDS,
    Format as Format,
)
from ppl_models.in_context.language.predictor import LanguageModel as LanguageModel, Tally as Tally
from ppl_models.in_context.language.records import Records as Records

"""Language models as in-context predictors: behind any completions endpoint of the OpenAI protocol, or in process."""

from ppl_models.in_context.language.endpoint import Endpoint as Endpoint, EndpointError as EndpointError
from ppl_models.in_context.language.formats import (
    BERNOULLI as BERNOULLI,
    GAUSSIAN as GAUSSIAN,
    RECORDS as RECORDS,
    Format as Format,
)
from ppl_models.in_context.language.gemma import Gemma as Gemma, GemmaShape as GemmaShape
from ppl_models.in_context.language.local import LocalModel as LocalModel
from ppl_models.in_context.language.predictor import LanguageModel as LanguageModel
from ppl_models.in_context.language.records import Records as Records
from ppl_models.in_context.language.tally import Tally as Tally
from ppl_models.in_context.language.weights import gemma_270m as gemma_270m

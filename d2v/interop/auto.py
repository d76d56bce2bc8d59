"""Registration of d2v's classes with Hugging Face's Auto classes, so that exports load without their own code."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from d2v.interop.remote.configuration_d2v import D2VConfig
from d2v.interop.remote.modeling_d2v import (
    D2VForAudioClassification,
    D2VForCTC,
    D2VForImageClassification,
    D2VForSequenceClassification,
    D2VModel,
)

AutoConfig.register(D2VConfig.model_type, D2VConfig)
AutoModel.register(D2VConfig, D2VModel)
AutoModelForAudioClassification.register(D2VConfig, D2VForAudioClassification)
AutoModelForCTC.register(D2VConfig, D2VForCTC)
AutoModelForImageClassification.register(D2VConfig, D2VForImageClassification)
AutoModelForSequenceClassification.register(D2VConfig, D2VForSequenceClassification)

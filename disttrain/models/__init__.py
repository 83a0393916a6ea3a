"""Models as plain modules, with the parameter names of torchvision and Hugging Face: outside weights load."""

from disttrain.models.bert import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)
from disttrain.models.gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Model
from disttrain.vision.models import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertModel",
    "GPT2Config",
    "GPT2LMHeadModel",
    "GPT2Model",
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

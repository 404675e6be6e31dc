"""The architectures that are built in, a file of data each. A new one is one file and one name here."""

from .bert import BERT, ROBERTA
from .gpt2 import GPT2
from .vit import DEIT, VIT

BUILT_IN = (BERT, ROBERTA, GPT2, VIT, DEIT)

"""The architectures that are built in, a file of data each. A new one is one file and one name here."""

from .bart import BART
from .beit import BEIT
from .bert import BERT, CAMEMBERT, ROBERTA, XLM_ROBERTA
from .clip import CLIP_TEXT_MODEL, CLIP_VISION_MODEL, SIGLIP_TEXT_MODEL, SIGLIP_VISION_MODEL
from .clip_pair import CLIP, SIGLIP
from .deberta import DEBERTA_V2
from .dino import DINOV2, DINOV2_WITH_REGISTERS, DINOV3_VIT
from .distilbert import DISTILBERT
from .electra import ELECTRA
from .gemma import GEMMA2, GEMMA3
from .gpt2 import GPT2
from .llama import GRANITE, LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3, SMOLLM3
from .modernbert import MODERNBERT
from .moe import MIXTRAL, QWEN2_MOE, QWEN3_MOE
from .mpnet import MPNET
from .neox import FALCON, GPT_NEOX
from .opt import OPT
from .starcoder import COHERE2, GLM4, STARCODER2
from .t5 import MT5, T5
from .vit import DEIT, VIT
from .wav2vec2 import HUBERT, WAV2VEC2
from .whisper import WHISPER

BUILT_IN = (
    *(BERT, ROBERTA, GPT2, VIT, DEIT),
    *(XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA, MPNET, DEBERTA_V2, MODERNBERT),
    *(LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, GRANITE, PHI3, OLMO2, GEMMA2, GEMMA3),
    *(BEIT, DINOV2, DINOV2_WITH_REGISTERS, DINOV3_VIT),
    *(CLIP_TEXT_MODEL, CLIP_VISION_MODEL, SIGLIP_TEXT_MODEL, SIGLIP_VISION_MODEL, CLIP, SIGLIP),
    *(MIXTRAL, QWEN2_MOE, QWEN3_MOE),
    *(STARCODER2, GLM4, COHERE2, OPT, GPT_NEOX, FALCON),
    *(WHISPER, BART, T5, MT5, WAV2VEC2, HUBERT),
)

"""Which names transformers gives its tokenizers' rules: by class and by model type."""

from __future__ import annotations

ALIASES = {
    name: target
    for target, names in {
        "PreTrainedTokenizerFast": "TokenizersBackend PreTrainedTokenizer PythonBackend",
        "BertTokenizer": "DistilBertTokenizer ElectraTokenizer LxmertTokenizer MobileBertTokenizer "
        "SqueezeBertTokenizer LayoutLMTokenizer DPRQuestionEncoderTokenizer "
        "DPRContextEncoderTokenizer",
        "RobertaTokenizer": "BartTokenizer LEDTokenizer LongformerTokenizer MvpTokenizer",
    }.items()
    for name in names.split()
}
"""Classes that are another by a second name."""

_NOT_SERVED = """
    BarthezTokenizer BartphoTokenizer BertGenerationTokenizer
    BertJapaneseTokenizer BertweetTokenizer BigBirdTokenizer BioGptTokenizer
    BlenderbotSmallTokenizer BlenderbotTokenizer ByT5Tokenizer CLIPTokenizer CTRLTokenizer
    CanineTokenizer CodeGenTokenizer CodeLlamaTokenizer CohereTokenizer ConvBertTokenizer
    CpmAntTokenizer CpmTokenizer DPRContextEncoderTokenizerFast
    DPRQuestionEncoderTokenizerFast DPRReaderTokenizer DebertaTokenizer EsmTokenizer
    EsmcTokenizer FNetTokenizer
    FSMTTokenizer FlaubertTokenizer FunnelTokenizer GPTNeoXJapaneseTokenizer
    GPTNeoXTokenizer GPTSw3Tokenizer HerbertTokenizer LayoutLMv2Tokenizer
    LayoutLMv3Tokenizer LayoutXLMTokenizer LukeTokenizer M2M100Tokenizer
    MBart50Tokenizer MBartTokenizer MLukeTokenizer MarianTokenizer MarkupLMTokenizer
    MyT5Tokenizer NllbTokenizer NougatTokenizer OpenAIGPTTokenizer PLBartTokenizer
    PegasusTokenizer PerceiverTokenizer PhobertTokenizer ProphetNetTokenizer
    Qwen3_5Tokenizer RagTokenizer ReformerTokenizer RemBertTokenizer RoCBertTokenizer
    RoFormerTokenizer SiglipTokenizer Siglip2Tokenizer SplinterTokenizer TapasTokenizer
    UdopTokenizer XGLMTokenizer XLMTokenizer XLNetTokenizer
"""
NOT_SERVED = frozenset(_NOT_SERVED.split())
"""Classes of transformers with rules of their own that are not here. A name that transformers does
not know either means there, and here, `tokenizer.json` as it is."""

BY_MODEL = {
    model: name
    for name, types in {
        "BertTokenizer": "bert convbert distilbert dpr electra ernie layoutlm megatron-bert "
        "mobilebert nezha nomic_bert qdqbert retribert squeezebert",
        "RobertaTokenizer": "bart data2vec-text ibert led longformer mega mra roberta "
        "roberta-prelayernorm",
        "MPNetTokenizer": "mpnet",
        "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
        "CamembertTokenizer": "camembert",
        "T5Tokenizer": "mt5 switch_transformers t5",
        "GPT2Tokenizer": "gpt2 gpt_neo gptj",
        "AlbertTokenizer": "albert yoso",
        "BigBirdTokenizer": "big_bird",
        "DebertaTokenizer": "deberta",
        "DebertaV2Tokenizer": "deberta-v2",
        "FNetTokenizer": "fnet",
        "FunnelTokenizer": "funnel",
        "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text t5gemma",
        "Qwen2Tokenizer": "qwen2 qwen3",
        "RemBertTokenizer": "rembert",
        "RoFormerTokenizer": "roformer",
        "XLNetTokenizer": "xlnet",
    }.items()
    for model in types.split()
}
"""The class by `model_type`, where no file names one."""

AS_IT_IS = {
    "mistral", "modernbert", "modernbert-decoder", "nystromformer", "umt5", "xlm-roberta-xl",
}  # fmt: skip
"""Model types whose `tokenizer.json` is taken as it is, whatever class of transformers' the files
name."""

BY_MODEL_ALONE = {"qwen2"}
"""Model types whose class is the one of `BY_MODEL`, whatever class the files name."""

"""pyenc inside transformers: `pyenc.register`, and `attn_implementation="pyenc"`.

    registration   what `register` and `unregister` put into transformers, and take out again
    state          whether it is in force
    configuring    from a name to a configuration, with the arguments that came with it
    deciding       which checkpoints transformers would load wrongly, or not at all
    naming         their tensor names, from a folder, the Hub's cache or the Hub
    config         the configuration of a model that pyenc serves
    arguments      what `from_pretrained` is given: honoured, or refused by name
    base           a model as transformers' class: loading, saving, sending it elsewhere
    model          for hidden states and for masked words
    classifier     for labels: rerankers
    attention      the attention of transformers' own encoders
    mask           the padding mask on its way there

Tested with transformers 5.24.
"""

from ..missing import needs
from .state import is_registered

__all__ = ["register", "unregister"]


def register() -> None:
    """Let transformers, and what stands on it, load through pyenc what they load wrongly or not.

    Afterwards `AutoConfig`, `AutoModel`, `AutoModelForMaskedLM` (and so `SentenceTransformer`,
    pipelines and others) take by folder or Hub name: JinaBert v2, MosaicBERT and those with its
    code (lodestone, DNABERT-2), GTE as `model_type: new`, NeoBERT, pplx-embed's layers, Llama's as
    `llama_bidirec`, nomic-bert where its config.json is not spelled as transformers reads it, and
    jina-embeddings-v3 as first published, without an adapter. `AutoModelForSequenceClassification`
    (and so `CrossEncoder`) takes rerankers and other classifiers of JinaBert v2, MosaicBERT and
    GTE, and jina-reranker-v2.
    Of a local folder, and of what the Hub's cache holds, the tensor names decide; of the Hub too,
    where config.json has something that no plain BERT's or XLM-RoBERTa's has. Everything else stays
    with transformers: the same class, the same bits.

    No remote code is run for them: as with any class registered with transformers, ours stands
    before a repository's code, under `trust_remote_code=True` too. `unregister` gives it back.

    `attn_implementation="pyenc"` is known from then on, to every model of transformers.

    Twice is once. A model that was loaded so registers in the process that unpickles it.

    Raises:
        MissingPackageError: transformers is not installed, or cannot be imported.
    """
    with needs("transformers"):
        from . import registration
    registration.register()


def unregister() -> None:
    """Undo `register`: transformers is as it was. Models that are loaded go on.

    Warns:
        UserWarning: something else has been put over ours since, or a version of transformers keeps
            names otherwise; what stays does nothing.
    """
    if is_registered():
        from . import registration

        registration.unregister()

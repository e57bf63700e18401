"""A tokenizer from its files: which there are, whose rules hold, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from ..errors import CheckpointError
from ..loading import read_config, read_json
from ..loading.files import check_fetched
from ..loading.hub import TOKENIZER_FILES
from ..models.families.qwen import gte_code
from .faults import panics_as_errors
from .sentencepiece_model import read_sentencepiece
from .tokenizer_classes import CLASSES, TokenizerClass
from .tokenizer_ends import GTE_QWEN2, OF_LLAMA, Whose, names_gte, settle
from .tokenizer_making import make_tokenizer
from .tokenizer_names import ALIASES, AS_IT_IS, BY_MODEL, BY_MODEL_ALONE, NOT_SERVED
from .tokenizer_parts import Parts, model_kind, parts_of
from .tokenizer_pieces import FILES as SENTENCEPIECE
from .tokenizer_pieces import cut_otherwise, file_of, pieces_of
from .tokenizer_settings import Settings, read_settings

LLAMA = "LlamaTokenizer"
VOCABULARIES = (
    ("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"),
    *((name,) for name in SENTENCEPIECE),
)  # fmt: skip
"""The sets of files that a tokenizer is made of, the first that is there."""
LOOKED_FOR = (
    "tokenizer.json, vocab.txt, vocab.json and merges.txt, or a SentencePiece model "
    f"({', '.join(SENTENCEPIECE)})"
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer and what its files say about calling it."""

    tokenizer: Tokenizer
    class_name: str
    max_length: int | None
    truncation_side: str
    token_types: bool
    """Whether the types of tokens are handed to the model too."""
    disputed: str = ""
    """What the files say in two ways, and which was taken."""
    otherwise: str = ""
    """What is taken otherwise than transformers does of the same files."""
    made_of: tuple[str, ...] = ()
    """The files that the vocabulary is from."""


def has_tokenizer(folder: Path) -> bool:
    """Are there files to make a tokenizer of?"""
    return any(all((folder / name).is_file() for name in files) for files in VOCABULARIES)


def read_tokenizer(folder: Path, overrides: dict[str, Any] | None = None) -> TokenizerFiles:
    """The tokenizer that transformers makes of a folder.

    Args:
        folder: holds `tokenizer.json`, or `vocab.txt` (WordPiece), or `vocab.json` and
            `merges.txt` (byte-level BPE), or a SentencePiece model (unigram), and settings beside
            it.
        overrides: settings over those of `tokenizer_config.json`.

    Raises:
        CheckpointError: no tokenizer files, damaged ones, or settings that are not served.
    """
    if not has_tokenizer(folder):
        raise CheckpointError(f"{folder}: no tokenizer: expected {LOOKED_FOR}")
    found = next(files for files in VOCABULARIES if all((folder / n).is_file() for n in files))
    path = folder / found[0]
    for name in found:
        check_fetched(folder / name)
    whole = read_json(path) if path.name == "tokenizer.json" else None
    try:
        with panics_as_errors():
            if whole is not None and not isinstance(whole.get("model"), dict):
                raise CheckpointError(f"{path}: not a readable tokenizer: no model")
            settings = read_settings(folder, whole, overrides)
            name, said = class_of(folder, settings, path)
            rules, otherwise = CLASSES[name], ""
            if whole is not None and not said and rules.model not in ("", model_kind(whole)):
                # Four families call themselves "bert", and not all of them cut words as BERT does.
                otherwise = (
                    f"tokenizer.json is a {model_kind(whole)} and no file names a class, so it is "
                    f"taken as it is; transformers 5 takes its words for those of {name}, a "
                    f"{rules.model}, by config.json's model_type"
                )
                rules = CLASSES["PreTrainedTokenizerFast"]
            if whole is not None and settings.get("trust_remote_code"):
                # By transformers the class reads the whole file then; what is around is its own.
                rules = replace(rules, model="")
            if whole is not None and rules.name == LLAMA:
                _name_padding(settings, whole, path)
            if path.suffix == ".model":
                path = file_of(rules, path)
                found = (path.name,)
                check_fetched(path)
                pieces = read_sentencepiece(path)
                parts, otherwise = pieces_of(pieces, rules, settings), cut_otherwise(pieces)
            else:
                parts = _parts(path, whole, rules)
            tokenizer = make_tokenizer(rules, parts, settings)
            _check_words(tokenizer, folder, settings)
            whose = _whose(folder, settings)
            disputed = settle(tokenizer, settings, whose) if whole and whose else ""
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception on files it cannot parse
        files = f"{path} and merges.txt" if path.name == "vocab.json" else path
        raise CheckpointError(f"{files}: not a readable tokenizer: {error}") from error
    side = _side(whole or {}, path)
    inputs = settings.get("model_input_names")  # without them no class gives other types than 0
    return TokenizerFiles(
        tokenizer=tokenizer,
        class_name=rules.name,
        max_length=settings.limit(),
        truncation_side=settings.truncation_side(side),
        token_types=isinstance(inputs, list) and "token_type_ids" in inputs,
        disputed=disputed,
        otherwise=otherwise,
        made_of=found,
    )


def _name_padding(settings: Settings, whole: dict[str, Any], path: Path) -> None:
    """The token that `tokenizer.json` pads with is a special one of a class that has none itself,
    as transformers has it."""
    padding = whole.get("padding")
    if "pad_token" not in settings.values and isinstance(padding, dict):
        settings.values["pad_token"] = padding.get("pad_token")
        settings.sources["pad_token"] = path


def _side(whole: dict[str, Any], path: Path) -> str:
    """Where `tokenizer.json` cuts a long text: not every class has the library read that part."""
    cut = whole.get("truncation")
    if not isinstance(cut, (dict, type(None))):
        raise CheckpointError(f"{path}: truncation: expected an object or null, got {cut!r:.40}")
    side = (cut or {}).get("direction", "Right")
    if side not in ("Left", "Right"):
        raise CheckpointError(
            f'{path}: truncation.direction: expected "Left" or "Right", got {side!r:.40}'
        )
    return str(side).lower()


def class_of(folder: Path, settings: Settings, path: Path) -> tuple[str, bool]:
    """Whose rules a folder follows, and whether a file says so: `tokenizer_class` in
    tokenizer_config.json, else in config.json, else by `model_type`, else by the files."""
    config_path = folder / "config.json"
    config = read_config(folder) if config_path.is_file() else {}
    named, where = settings.get("tokenizer_class"), settings.sources.get("tokenizer_class")
    if named is None:
        named, where = config.get("tokenizer_class"), config_path
    if named is not None and not isinstance(named, str):
        raise CheckpointError(f"{where}: tokenizer_class: expected a name, got {named!r:.40}")
    model_type = str(config.get("model_type", ""))
    remote = settings.get("auto_map")
    # A list is the older spelling.
    remote = bool(remote.get("AutoTokenizer") if isinstance(remote, dict) else remote)
    if model_type in AS_IT_IS and not remote:
        return "PreTrainedTokenizerFast", True
    if model_type in BY_MODEL_ALONE and not remote:
        return BY_MODEL[model_type], True
    said = named is not None
    if named is None:
        named, where = BY_MODEL.get(model_type), config_path
    if named is None:
        by_file = {"vocab.txt": "BertTokenizer", "vocab.json": "RobertaTokenizer"}
        return by_file.get(path.name, "PreTrainedTokenizerFast"), False
    known = named in CLASSES or named in ALIASES or named in NOT_SERVED
    name = named if known else named.removesuffix("Fast")
    name = ALIASES.get(name, name)
    byte_level = name == LLAMA and not remote and path.suffix != ".model"
    if byte_level and '"ByteLevel"' in path.read_text("utf-8"):
        # Llama 3's, under the class of before it.
        return "PreTrainedTokenizerFast", True
    if name in CLASSES:
        return name, said
    if name in NOT_SERVED or remote:
        raise CheckpointError(
            f"{where}: tokenizer_class {named!r} has rules of its own, which are not served; "
            f"served: {', '.join(CLASSES)} (the first takes tokenizer.json as it is)"
        )
    return "PreTrainedTokenizerFast", said


def _whose(folder: Path, settings: Settings) -> Whose | None:
    """Whose settings beside `tokenizer.json` this folder's are: those of a class that overwrote
    what that file puts around a text; None: of no such class."""
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    kind = config.get("model_type")
    if kind == "qwen2" and gte_code(config.get("auto_map")):
        return GTE_QWEN2 if names_gte(settings.get("auto_map")) else None
    if kind not in ("llama", "mistral"):
        return None
    # Did transformers 4 take Llama's class for it?
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or LLAMA
    return OF_LLAMA if str(named).removesuffix("Fast") == LLAMA else None


def _check_words(tokenizer: Tokenizer, folder: Path, settings: Settings) -> None:
    """transformers puts words of its own in the place of those of some of Mistral's files."""
    if not settings.get("fix_mistral_regex") or tokenizer.get_vocab_size() <= 100_000:
        return
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if config.get("model_type", "mistral") == "mistral":
        raise settings.fault(
            "fix_mistral_regex", "true: other words than tokenizer.json's are not served"
        )


def _parts(path: Path, whole: dict[str, Any] | None, rules: TokenizerClass) -> Parts:
    if whole is not None:
        return parts_of(whole, path, rules.name, rules.model)
    expected = "WordPiece" if path.name == "vocab.txt" else "BPE"
    if rules.model != expected or not rules.lists:
        raise CheckpointError(
            f"{path}: tokenizer_class {rules.name} cannot be made of it; expected tokenizer.json"
        )
    # The library's own readers, which cut at \n alone.
    if expected == "WordPiece":
        return Parts(path, models.WordPiece.read_file(str(path)))
    return Parts(path, *models.BPE.read_file(str(path), str(path.with_name("merges.txt"))))


__all__ = ["TOKENIZER_FILES", "TokenizerFiles", "has_tokenizer", "read_tokenizer"]

"""What the files beside a vocabulary say: every key is used, known to be harmless, or refused.

What counts for which class was found by trying transformers 5: "right" is what its AutoTokenizer
gives on the same folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ..errors import CheckpointError
from ..loading import read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens with a name; other keys that end in `_token` name further ones."""

SWITCHES = {
    "do_lower_case": (bool,),
    "strip_accents": (bool, type(None)),
    "keep_accents": (bool,),
    "tokenize_chinese_chars": (bool,),
    "add_prefix_space": (bool, type(None)),
    "split_by_punct": (bool, type(None)),
    "trim_offsets": (bool,),
    "add_bos_token": (bool, type(None)),
    "add_eos_token": (bool, type(None)),
    "split_special_tokens": (bool,),
    "legacy": (bool, type(None)),
    "fix_mistral_regex": (bool, type(None)),
    "extra_ids": (int,),
    "unk_id": (int,),
}
"""Settings that decide tokens or spans, and their types."""

LISTS = ("extra_special_tokens", "additional_special_tokens")
"""Settings that list special tokens; the second is the older name."""

BY_NAME = "model_specific_special_tokens"
"""Where transformers 5 writes special tokens of names beyond `NAMED` once more: it reads them here
where none stands under its own name."""

OTHERS = {
    *LISTS, BY_NAME, "added_tokens_decoder", "model_max_length", "max_len", "truncation_side",
    "tokenizer_class", "model_input_names", "trust_remote_code",
}  # fmt: skip
"""The other settings that are used."""

HARMLESS = {
    "where it came from": """_commit_hash _from_auto _name_or_path auto_map backend cache_dir
        files_loaded from_slow is_fast is_local local_files_only name_or_path processor_class
        revision special_tokens_map_file subfolder token tokenizer_file tokenizer_type
        transformers_version use_auth_token use_fast vocab_file merges_file full_tokenizer_file
        model_type device device_map dtype torch_dtype""",
    "padding, and limits of a call: neither is state here": """max_length pad_to_multiple_of
        pad_token_type_id pad_token_id pad_type_id padding padding_side stride truncation
        truncation_strategy return_token_type_ids return_tensors verbose""",
    "from ids to text": """clean_up_tokenization_spaces errors spaces_between_special_tokens
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output""",
    "for chats": """chat_template chat_control_tokens response_template response_schema
        default_chat_template use_default_system_prompt image_seq_length""",
    "read by the slow tokenizers of before alone": """basic_tokenizer clean_text do_basic_tokenize
        never_split remove_space sp_model_kwargs
        wordpieces_prefix wordpiece_prefix do_split vocab_type special_tokens
        special_tokens_attr phoneme_language word_delimiter""",
    "ids that the vocabulary gives again": """bos_token_id cls_token_id eos_token_id mask_token_id
        sep_token_id unk_token_id""",
}
"""Keys that published files have and that decide no token, by why."""

_HARMLESS = {key for keys in HARMLESS.values() for key in keys.split()}


PASSED_OVER = ("tokenizer_class", "auto_map", "trust_remote_code")
"""What transformers reads in tokenizer_config.json alone, and passes over where another file puts
it over that."""

OF_ANOTHER = {
    "tokenizer_type": "asks for the rules of another model",
    "tokenizer_file": "asks for another tokenizer.json",
}
"""What decides where another file says it, and not in tokenizer_config.json."""


LIMITS = ("model_max_length", "max_len")
"""How long a text may be; the second is the older name."""

NO_LIMIT = 10**6
"""A `model_max_length` beyond this is transformers' way of saying that it does not know."""


@dataclass
class Settings:
    """The settings of a tokenizer's files, merged in transformers' order."""

    values: dict[str, Any] = field(default_factory=dict)
    added: dict[int, AddedToken] = field(default_factory=dict)
    """Added tokens by id, as the files declare them."""
    declared: dict[int, tuple[Path, AddedToken]] = field(default_factory=dict)
    """Those whose id the tokenizer must give again, and the file that says so."""
    objects: dict[str, str | AddedToken] = field(default_factory=dict)
    """Named special tokens beyond `NAMED`: those written as objects, or in another file."""
    strings: dict[str, str | AddedToken] = field(default_factory=dict)
    """And the others, which come behind, and count where both have a name."""
    sources: dict[str, Path] = field(default_factory=dict)
    """The file of each value."""
    told: frozenset[str] = frozenset()
    """Keys of those that another file puts over these."""
    spelled: dict[str, str] = field(default_factory=dict)
    """Keys that a file has under an older name, and that."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    @property
    def more(self) -> dict[str, str | AddedToken]:
        """Named special tokens beyond `NAMED`, in transformers' order."""
        return self.objects | self.strings

    def fault(self, key: str, why: str) -> CheckpointError:
        source = self.sources.get(key, "tokenizer_config.json")
        return CheckpointError(f"{source}: {self.spelled.get(key, key)}: {why}")

    def limit(self) -> int | None:
        """The longest text in tokens, where the files know one."""
        key = next((key for key in LIMITS if key in self.values), "")
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
            raise self.fault(key, f"expected a positive number, got {value!r}")
        return int(value) if value < NO_LIMIT else None

    def truncation_side(self, default: str) -> str:
        """Where a text that is too long is cut."""
        side = self.get("truncation_side", default)
        if side not in ("left", "right"):
            raise self.fault("truncation_side", f'expected "left" or "right", got {side!r}')
        return str(side)


def read_limit(folder: Path, values: dict[str, Any]) -> int | None:
    """The longest text in tokens by the values of `folder`'s tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    return Settings(values, sources=dict.fromkeys(values, path)).limit()


def read_settings(
    folder: Path, whole: dict[str, Any] | None, overrides: dict[str, Any] | None = None
) -> Settings:
    """The settings of a folder: `tokenizer_config.json`, `special_tokens_map.json`,
    `added_tokens.json` and the added tokens of `tokenizer.json`.

    Args:
        folder: the tokenizer's folder.
        whole: the content of `tokenizer.json`, where there is one.
        overrides: settings that another file puts over these, `sentence_bert_config.json`.

    Raises:
        CheckpointError: a key is unknown, of the wrong type, or not served; file and key named.
    """
    settings = Settings(told=frozenset(overrides or {}))
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    told = {key: value for key, value in (overrides or {}).items() if key not in PASSED_OVER}
    for source, values in ((path, config), (folder / "sentence_bert_config.json", told)):
        for key, value in values.items():
            settings.values[key] = value
            settings.sources[key] = source
    for key, what in OF_ANOTHER.items():
        if told.get(key) is not None:
            raise settings.fault(key, f"{told[key]!r:.60} {what}, which is not served; remove it")
    values = settings.values
    _check(settings, list(values))
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
        settings.sources["extra_special_tokens"] = settings.sources["additional_special_tokens"]
        settings.spelled["extra_special_tokens"] = "additional_special_tokens"
    _name_more(settings)
    if "added_tokens_decoder" in values:
        decoder = values["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise settings.fault("added_tokens_decoder", f"expected an object, got {decoder!r:.40}")
        for number, token in decoder.items():
            if not str(number).isdecimal() or not isinstance(token, dict):
                raise settings.fault(
                    "added_tokens_decoder", f"expected tokens by id, got {number!r}: {token!r:.40}"
                )
            settings.added[int(number)] = AddedToken(
                **_fields(settings, "added_tokens_decoder", token)
            )
        settings.declared = {i: (path, token) for i, token in settings.added.items()}
    else:  # these files speak only where the configuration does not list its added tokens
        _read_map(folder / "special_tokens_map.json", settings)
        _read_added(folder / "added_tokens.json", settings)
        for token in (whole or {}).get("added_tokens") or []:
            fields = {key: value for key, value in token.items() if key != "id"}
            settings.added[int(token["id"])] = AddedToken(**fields)
    by_content = {token.content: token for token in settings.added.values()}
    for place in (values, settings.objects, settings.strings):
        for key in NAMED if place is values else list(place):
            if place.get(key) is not None:
                token = _token(settings, key, place[key])
                place[key] = by_content.get(str(_content(token)), token)
    for key in LISTS:
        if values.get(key) is not None:
            values[key] = [_token(settings, key, token) for token in values[key]]
    return settings


def _check(settings: Settings, keys: list[str]) -> None:
    for key in keys:
        value = settings.values[key]
        if key in SWITCHES:
            types = SWITCHES[key]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                names = " or ".join("null" if t is type(None) else t.__name__ for t in types)
                raise settings.fault(key, f"expected {names}, got {value!r:.40}")
        elif key == "fast_tokenizer_files":
            if value != ["tokenizer.json"]:
                raise settings.fault(key, f"not served: {value!r:.60}; only tokenizer.json is read")
        elif key == "init_inputs":
            if value:
                raise settings.fault(key, f"not served: {value!r:.40}; expected an empty list")
        elif not (key in OTHERS or key in _HARMLESS or key.endswith("_token")):
            raise settings.fault(
                key,
                "an unknown setting, which may decide tokens; remove it if it does not, or ask for "
                "it to be served",
            )


def _name_more(settings: Settings, of_map: bool = False) -> None:
    """Takes out the special tokens whose names are the checkpoint's own; the others are lists.

    of_map: whether they stand in special_tokens_map.json.
    """
    values = settings.values
    again = values.pop(BY_NAME, None)
    if not isinstance(again, (dict, type(None))):
        raise settings.fault(BY_NAME, f"expected tokens by name, got {again!r:.40}")
    plain = False  # whether one stands under its own name, as a string
    for key in [k for k in values if k.endswith("_token") and k not in NAMED and k not in SWITCHES]:
        if key in _HARMLESS:  # `token` and its like name no token
            continue
        value = values.pop(key)
        plain |= isinstance(value, str)
        if isinstance(value, dict) and value.get("__type") != "AddedToken":
            continue  # transformers takes it for any other value, not for a token
        if isinstance(value, (str, dict, AddedToken)):
            kind = settings.strings if isinstance(value, str) and not of_map else settings.objects
            kind[key] = _token(settings, key, value)
        elif value is not None:
            raise settings.fault(key, f"expected a token, got {value!r:.40}")
    extra = values.get("extra_special_tokens")
    if isinstance(extra, dict):
        del values["extra_special_tokens"]
        for key, value in extra.items():
            settings.strings[key] = _token(settings, "extra_special_tokens", value)
    if again and not (plain or (isinstance(extra, dict) and extra)):
        settings.strings |= {k: _token(settings, BY_NAME, value) for k, value in again.items()}
    for key in LISTS:
        if not isinstance(values.get(key, []), (list, type(None))):
            raise settings.fault(key, f"expected a list of tokens, got {values[key]!r:.40}")


def _read_map(path: Path, settings: Settings) -> None:
    if not path.is_file():
        return
    for key, value in read_json(path).items():
        lists = key in LISTS
        if key in settings.told and not lists:
            continue
        settings.sources[key] = path
        settings.spelled.pop(key, None)
        if not (lists or key.endswith("_token")) or key in SWITCHES:
            raise settings.fault(key, "not a special token; expected the tokens' names alone")
        if key == "extra_special_tokens" and isinstance(value, list):
            known = settings.get(key) or []
            texts = [_content(token) for token in known]
            value = [*known, *(token for token in value if _content(token) not in texts)]
        if isinstance(value, dict) and not lists:
            value = AddedToken(**_fields(settings, key, value))
        settings.values[key] = value
    _name_more(settings, of_map=True)


def _read_added(path: Path, settings: Settings) -> None:
    if not path.is_file():
        return
    # transformers does not find one that the configuration writes as an object.
    named = [*map(settings.get, NAMED), *(settings.get("extra_special_tokens") or [])]
    special = {str(token) for token in named if token and not isinstance(token, dict)}
    for text, number in read_json(path).items():
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{path}: {text!r}: expected an id, got {number!r:.40}")
        known = text in special
        token = AddedToken(text, normalized=not known, special=known)
        settings.added[number] = token
        settings.declared[number] = (path, token)


def _token(settings: Settings, key: str, value: Any) -> str | AddedToken | Any:
    """A token as the files write it: its text, or an object."""
    if isinstance(value, (str, AddedToken)):
        return value
    if isinstance(value, dict):
        return AddedToken(**_fields(settings, key, value))
    raise settings.fault(key, f"expected a token, got {value!r:.40}")


def _fields(settings: Settings, key: str, value: dict[str, Any]) -> dict[str, Any]:
    fields = {k: v for k, v in value.items() if k not in ("__type", "id")}
    known = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
    if not isinstance(fields.get("content"), str) or not set(fields) <= known:
        raise settings.fault(key, f"expected a token, got {value!r:.60}")
    flags = {k: v for k, v in fields.items() if k != "content"}
    if not all(isinstance(v, bool) for v in flags.values()):
        raise settings.fault(key, f"expected a token with true or false, got {value!r:.80}")
    return fields


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)

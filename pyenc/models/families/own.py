"""pyenc's own format: an encoder as its `EncoderConfig` says, tensors by its parameters' names.

For encoders that no published family has, such as those with a registered position
(`pyenc.models.register_position`). `config.json` has a `model_type` that nothing else knows, so
nothing else loads it wrongly, and the whole `EncoderConfig` under "encoder".
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...errors import CheckpointError, InputError
from ..config import EncoderConfig
from ..encoder import Encoder
from ..meta import on_meta
from ..position import shapes_alone
from .config_file import LARGEST, ConfigFile
from .family import Family
from .parts import Names, Parts

MODEL_TYPE = "pyenc-encoder"
KEY = "encoder"
MOST_HEADS = 4096


def config_json(config: EncoderConfig) -> dict[str, Any]:
    """What `config.json` says of an encoder."""
    said = asdict(config) | {"position_fields": dict(config.position_fields)}
    as_read: dict[str, Any] = json.loads(json.dumps({"model_type": MODEL_TYPE, KEY: said}))
    return as_read


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    said = config.values.get(KEY)
    if not isinstance(said, Mapping):
        raise CheckpointError(
            f"{config.path}: model_type {MODEL_TYPE!r} needs an object under {KEY!r}, got {said!r}"
        )
    shape: EncoderConfig = _object(f"{config.path}: {KEY}", said, EncoderConfig)
    if shape.num_heads > min(MOST_HEADS, shape.hidden_size):
        raise CheckpointError(
            f"{config.path}: {KEY}: num_heads must be at most {MOST_HEADS} and no more than "
            f"hidden_size {shape.hidden_size}, got {shape.num_heads}"
        )
    return shape


def _parts(config: EncoderConfig, names: Names) -> Parts:
    # Names alone are asked for; no size in a file is trusted before its tensors are looked at.
    small = replace(
        config, vocab_size=1, hidden_size=4 * config.num_heads, head_size=4, intermediate_size=1,
        convolution=config.convolution and replace(config.convolution, groups=1),
        type_vocab_size=min(config.type_vocab_size, 1), num_positions=min(config.num_positions, 1),
        padding_row=None, embedding_size=None if config.embedding_size is None else 1,
    )  # fmt: skip
    with on_meta(), shapes_alone():
        encoder = Encoder(small)
    return {name: (name,) for name, _ in encoder.named_parameters()}


def _object(where: str, said: Mapping[str, Any], kind: type) -> Any:
    """A dataclass of what a JSON object says: every key known, every value of the right type."""
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    strange = [key for key in said if key not in known]
    if strange:
        raise CheckpointError(f"{where}: unknown key {strange[0]!r}; known: {', '.join(known)}")
    for name, field in known.items():
        if name not in said and field.default is MISSING:
            raise CheckpointError(f"{where}: {name} is missing")
    values = {key: _typed(f"{where}: {key}", value, hints[key]) for key, value in said.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _typed(where: str, value: Any, hint: Any) -> Any:
    """A JSON value as a field's annotation has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (hint,) = (x for x in inner if x is not type(None))
        return _typed(where, value, hint)
    if origin is Literal:
        good = value in inner
    elif origin is tuple:
        good = isinstance(value, list)
        if good:
            return tuple(_typed(where, x, inner[0]) for x in value)
    elif is_dataclass(hint) and isinstance(hint, type):
        good = isinstance(value, dict)
        if good:
            return _object(where, value, hint)
    elif hint is float:
        # Python compares exactly: a whole number too large for a float is larger than any.
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
    elif hint is int:
        good = type(value) is int and -1 <= value < LARGEST
    else:
        good = type(value) is hint
    if not good:
        wanted = "a finite number" if hint is float else getattr(hint, "__name__", hint)
        if origin is Literal:
            wanted = " or ".join(repr(x) for x in inner)
        raise CheckpointError(f"{where} must be {wanted}, got {value!r:.80}")
    return float(value) if hint is float else value


FAMILY = Family(
    name="pyenc's own",
    checkpoints=(),
    signature=("embeddings.word.weight",),
    config=_config,
    parts=_parts,
    accepts=lambda config: config.values.get("model_type") == MODEL_TYPE,
    model_types=(MODEL_TYPE,),
    prefixes=("",),
    set_aside=(),
    own_head=True,
    tied={},
    layer=r"layers\.(\d+)\.",
    layers_key=f"{KEY}: num_layers",
)

"""`PyencPreTrainedModel`: an `Encoder` as a `PreTrainedModel`: loading, saving, sending.

Shapes as suffixes: B rows, N padded length, T packed tokens, C channels, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ...errors import CheckpointError, InputError
from ...loading import Checkpoint, load_checkpoint, resolve, save_checkpoint
from ...loading.save import config_of
from ...models.families import in_own_order
from ...models.int8 import quantization
from ...models.packing import Packed, pack
from . import arguments
from .config import PUBLISHED_FIELD, PyencConfig, published_of
from .configuring import configured
from .state import registered_by


class PyencPreTrainedModel(PreTrainedModel):
    """What the models share: loading, saving, embeddings. Made by `from_pretrained` alone."""

    config_class = PyencConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    config: PyencConfig

    def __init__(self, config: PyencConfig, checkpoint: Checkpoint | None = None) -> None:
        if checkpoint is None:
            raise InputError(
                f"a {type(self).__name__} is made by from_pretrained, of a checkpoint; random "
                "weights (from_config) are not served: pyenc.Encoder(EncoderConfig(...)) makes them"
            )
        super().__init__(config)
        self.encoder = checkpoint.encoder
        self._checkpoint = checkpoint
        self.post_init()

    def init_weights(self) -> None:
        """Nothing: the weights are the checkpoint's."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a head that is tied has no weights but the embeddings'."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *args: Any,
        config: PyencConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """A checkpoint by folder or Hub name, strictly loaded, in eval mode.

        Args:
            pretrained_model_name_or_path: folder or Hub name.
            config: what AutoConfig gave for it.
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download`; `dtype` (default what config.json says, else as stored, as
                transformers has it); `device_map` naming one device; `output_loading_info`.

        Raises:
            InputError: another argument, which would have no effect here.
            CheckpointError: the checkpoint is not what it says it is.
        """
        if args:
            raise InputError(f"{cls.__name__}.from_pretrained takes no positional {args!r:.80}")
        hub = {name: kwargs.pop(name) for name in arguments.HUB if name in kwargs}
        given = {
            name: kwargs.pop(name, None)
            for name in ("dtype", "torch_dtype", "device_map", "output_loading_info")
        }
        if config is None:
            config, kwargs = cls._config_of(pretrained_model_name_or_path, hub, kwargs)
        arguments.check_rest(kwargs)
        arguments.check_rest({"output_attentions": config.output_attentions})
        revision, subfolder = hub.pop("revision", None), hub.pop("subfolder", None) or ""
        local = Path(pretrained_model_name_or_path).is_dir()
        folder = resolve(
            str(pretrained_model_name_or_path),
            None if local else revision,  # transformers says "main" of folders too
            subfolder=subfolder,
            options={key: value for key, value in hub.items() if value is not None},
        )
        checkpoint = load_checkpoint(
            folder,
            device=arguments.wanted_device(given["device_map"]),
            dtype=arguments.wanted_dtype(given, config),
            config=published_of(config),
        )
        if quantization(checkpoint.encoder):
            raise InputError(
                f"{pretrained_model_name_or_path}: its linear layers are of eight bits, which are "
                "not served inside of transformers; pyenc.load takes it"
            )
        config = copy.deepcopy(config)
        config.dtype = checkpoint.encoder.dtype
        config.name_or_path = str(pretrained_model_name_or_path)
        model = cls(config, checkpoint)
        model.eval()
        if given["output_loading_info"]:
            # Strict: whatever would stand here is an error.
            return model, {
                "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(),
                "error_msgs": [],
            }  # fmt: skip
        return model

    @staticmethod
    def _config_of(
        name: str | PathLike[str], hub: Mapping[str, Any], rest: Mapping[str, Any]
    ) -> tuple[PyencConfig, dict[str, Any]]:
        found = configured(str(name), {**hub, **rest, "return_unused_kwargs": True})
        if found is None:
            raise InputError(
                f"{name}: not a checkpoint that pyenc serves inside of transformers; "
                "AutoModel.from_pretrained takes it"
            )
        config, unused = found
        return config, unused

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a folder that pyenc and, after `pyenc.register()`, transformers load.

        Its `model_type` is "pyenc", which transformers alone does not know and therefore refuses;
        the tensors have their published names. `pyenc.load(folder).save(...)` writes the published
        `model_type` again.

        Args:
            save_directory: made where missing.
            is_main_process: False writes nothing.
            state_dict: written in the place of the model's own; of the same names.
            max_shard_size, token, kwargs: without effect: it is one file, here.

        Raises:
            InputError: `push_to_hub` or `variant` is asked for, or `state_dict` has other names.
            CheckpointError: the folder cannot be written, or the model has become what its
                checkpoint cannot hold.
        """
        if push_to_hub:
            raise InputError("push_to_hub is not served: save the folder and upload it")
        if variant is not None:
            raise arguments.refuse("variant", variant)
        if not is_main_process:
            return
        state = None if state_dict is None else self._encoder_state(state_dict)
        checkpoint = self._written(state_dict)
        config = self.config.to_diff_dict()
        config[PUBLISHED_FIELD] = self._published(checkpoint)
        config["dtype"] = str(self.encoder.dtype).removeprefix("torch.")
        save_checkpoint(checkpoint, Path(save_directory), config=config, state=state)

    def _published(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The published `config.json` as it is written."""
        return config_of(checkpoint)

    def _written(self, state: Mapping[str, Tensor] | None) -> Checkpoint:
        """What is written beside the encoder's own parameters.

        Args:
            state: in the place of the model's own.

        Raises:
            CheckpointError: the model has what its checkpoint cannot hold.
        """
        beside = self._beside()
        for name, _ in self.named_parameters():
            if not name.startswith("encoder.") and name not in beside:
                raise CheckpointError(
                    f"{self.config.name_or_path}: parameter {name} is none of its checkpoint's, "
                    "and would not be written"
                )
        return self._checkpoint

    def _beside(self) -> dict[str, str]:
        """Parameters that are no part of the encoder, and are written: own name -> in the file."""
        return {}

    def _encoder_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        beside = self._beside()
        if missing := [name for name in beside if name not in state]:
            raise InputError(f"state_dict: {missing[0]!r} is missing")
        own = {n.removeprefix("encoder."): tensor for n, tensor in state.items() if n not in beside}
        if different := own.keys() ^ self.encoder.state_dict().keys():
            raise InputError(
                f"state_dict: expected the model's own names; {sorted(different)[0]!r} is in one "
                "of the two alone"
            )
        return own

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module; the published names are understood too, as `save_pretrained` writes
        them and a Trainer reads them back."""
        sources, order = self._checkpoint.sources, self._checkpoint.family.row_order
        if any(name in state_dict for names in sources.values() for name in names):
            beside = self._beside()
            wanted = [*(n for names in sources.values() for n in names), *beside.values()]
            missing = [n for n in wanted if n not in state_dict]
            known = {*wanted, *self._checkpoint.set_aside, *self._checkpoint.tied}
            known |= {*self._checkpoint.buffers, *self._checkpoint.adapters}
            strange = [n for n in state_dict if n not in known]
            if strange and strict:
                raise InputError(f"state_dict: {strange[0]!r} is none of the checkpoint's names")
            if missing and strict:
                raise InputError(f"state_dict: {missing[0]!r} is missing")
            found = {n: state_dict[stored] for n, stored in beside.items() if stored in state_dict}
            state_dict = found | {
                f"encoder.{parameter}": in_own_order(
                    torch.cat([state_dict[n] for n in names]), order(self.encoder.config, parameter)
                )
                for parameter, names in sources.items()
                if all(n in state_dict for n in names)
            }
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """What `gradient_checkpointing_enable` comes to (`activation_checkpointing_enable` in newer
        versions): the encoder's own.

        Raises:
            InputError: as of `Encoder.gradient_checkpointing_enable`.
        """
        if not enable:
            self.encoder.gradient_checkpointing_disable()
            return
        function: Any = gradient_checkpointing_func
        own = getattr(function, "func", function) is checkpoint
        self.encoder.gradient_checkpointing_enable(
            getattr(function, "keywords", None), every_n_layers=every_n_layers, offload=not own
        )

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.encoder.is_gradient_checkpointing

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.encoder.is_gradient_checkpointing

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_registered_by": registered_by()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process of its own a model brings along what it was loaded by: `register`."""
        again = state.pop("_registered_by", None)
        super().__setstate__(state)
        if again is not None:
            again()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Others in the place of the word embeddings, of the same shape.

        Raises:
            InputError: of another shape, which no checkpoint of this config.json holds.
        """
        word = self.encoder.embeddings.word
        if not isinstance(value, nn.Embedding) or value.weight.shape != word.weight.shape:
            raise InputError(
                f"word embeddings must be an Embedding of {tuple(word.weight.shape)}, got {value!r}"
            )
        self.encoder.embeddings.word = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Embedding:
        """The word embeddings, where they are not to change.

        Raises:
            InputError: they are: the checkpoint's config.json says how many there are.
        """
        words = self.encoder.config.vocab_size
        if new_num_tokens not in (None, words):
            raise InputError(
                f"resize_token_embeddings({new_num_tokens}): these models keep the {words} words "
                "of their checkpoint"
            )
        return self.encoder.embeddings.word

    def _packed(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        keep_states: bool,
    ) -> tuple[Packed, Tensor, tuple[Tensor, ...] | None]:
        """How the tokens are packed, their hidden states (T, C), and those of all layers, padded,
        where they are wanted."""
        if inputs_embeds is not None:
            raise InputError("inputs_embeds is not served: give input_ids")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise InputError("output_attentions is not served: the weights are never made")
        if input_ids is None:
            raise InputError("input_ids is missing")
        if position_ids is not None:
            columns = torch.arange(input_ids.shape[-1], device=input_ids.device)
            if not bool((position_ids == columns).all()):
                raise InputError(
                    "position_ids is not served but as 0..N-1: positions are a token's columns"
                )
        encoder = self.encoder
        packed = pack(input_ids, attention_mask, token_type_ids, encoder.config.padding_id)
        states: list[Tensor] | None = [] if keep_states else None
        hidden = encoder.hidden(packed, states)
        kept = None if states is None else tuple(packed.unpack(state) for state in states)
        return packed, hidden, kept

    def _said(self, value: bool | None, key: str) -> bool:
        """An output flag: of the call, else of the configuration."""
        return bool(getattr(self.config, key) if value is None else value)

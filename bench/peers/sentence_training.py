"""A training step of sentence-transformers' trainer, plain or under `pyenc.accelerate`.

What its trainer does between the collator and the next batch: forward, loss, backward and the
optimizer's step, without the scheduler, logging and saving.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import pyenc
from bench.peers import sentence_transformers as peer

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""With dropout an accelerated model trains by its own code."""


def step_of(
    folder: Path, texts: Sequence[str], target: Tensor, accelerated: bool, rate: float
) -> Callable[[], Tensor]:
    """One step a call; its loss, of means against target vectors (B, C).

    Raises:
        ImportError: the trainer's own packages, `datasets` and `accelerate`, are not installed.
    """
    import accelerate as _accelerate  # noqa: F401  (the trainer asks for it when it is made)
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    peer.no_bars()
    whole = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, config_kwargs=dict(WITHOUT_DROPOUT)
    )
    model = SentenceTransformer(modules=list(whole)[:2], device="cpu")  # no Normalize
    model.max_seq_length = peer.MAX_LENGTH
    if accelerated:
        pyenc.accelerate(model)
    data = datasets.Dataset.from_dict({"text": list(texts), "label": target.tolist()})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="pyenc-bench-"), per_device_train_batch_size=len(texts),
        use_cpu=True, report_to="none", save_strategy="no", learning_rate=rate, max_grad_norm=0.0,
        weight_decay=0.01, optim="adamw_torch_fused", disable_tqdm=True,
    )  # fmt: skip
    trainer: Any = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=MSELoss(model)
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # its own loop says so
    model.train()
    features = trainer.data_collator([data[i] for i in range(len(texts))])

    def step() -> Tensor:
        trainer.optimizer.zero_grad()
        loss: Tensor = trainer.training_step(model, dict(features))
        trainer.optimizer.step()
        return loss

    return step

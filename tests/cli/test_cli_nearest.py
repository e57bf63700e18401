"""An option or a word that there is not is answered with the one that was meant."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyenc.cli import nearest
from pyenc.cli.arguments import build_parser

Fails = Callable[..., str]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["embed", "m", "--batch-size", "8"], "did you mean --batch-tokens?"),
        (["embed", "m", "--batch_size=8"], "did you mean --batch-tokens?"),
        (["embed", "m", "--max-seq-length", "8"], "did you mean --max-length?"),
        (["embed", "m", "--max_seq_len", "8"], "did you mean --max-length?"),
        (["embed", "m", "--max-lenght", "8"], "did you mean --max-length?"),
        (["embed", "--model", "m", "t.txt"], "MODEL is given without an option"),
        (["embed", "m", "--input", "t.txt"], "INPUT is given without an option"),
        (["embed", "m", "--text-column", "body"], "did you mean --field?"),
        (["embed", "m", "--id-column", "key"], "did you mean --id-field?"),
        (["embed", "m", "--force"], "did you mean --overwrite?"),
        (["embed", "m", "-f"], "did you mean --overwrite?"),
        (["embed", "m", "--fp16"], "did you mean --dtype?"),
        (["embed", "m", "--dim", "5"], "did you mean --truncate-dim?"),
        (["embed", "m", "--ignore-errors"], "did you mean --skip-bad?"),
        (["embed", "m", "--normalize-embeddings"], "did you mean --normalize?"),
        (["embed", "m", "--show-progress-bar"], "did you mean --progress?"),
        (["embed", "m", "--quiet"], "did you mean --no-progress?"),
        (["embed", "m", "--num-workers", "4"], "OMP_NUM_THREADS"),
        (["embed", "m", "--trust-remote-code"], "no checkpoint's own code is ever run"),
        (["verify", "m", "--input", "t.txt"], "did you mean --texts?"),
        (["verify", "m", "--atol", "1"], "did you mean --tolerance?"),
        (["info", "m", "--jsn"], "did you mean --json?"),
        (["verify", "m", "--on-long", "error"], "it is an option of pyenc embed"),
        (["info", "m", "--texts", "x"], "it is an option of pyenc verify"),
        (["info", "m", "--prompt=x"], "it is an option of pyenc embed and pyenc verify"),
    ],
)
def test_options(fails: Fails, words: list[str], meant: str) -> None:
    message = fails(*words)
    assert "unknown option" in message
    assert meant in message
    assert f"(see pyenc {words[0]} --help)" in message


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["embd"], "did you mean embed?"),
        (["encode", "m"], "did you mean embed?"),
        (["benchmark"], "did you mean bench?"),
        (["inspect", "m"], "did you mean info?"),
        (["info", "m", "--dtype", "fp16"], "did you mean float16?"),
        (["info", "m", "--dtype", "bf16"], "did you mean bfloat16?"),
        (["info", "m", "--backend", "tirton"], "did you mean triton?"),
        (["info", "m", "--backend", "sdpa"], "did you mean torch?"),
        (["embed", "m", "-o", "o.npy", "--format", "json"], "did you mean jsonl?"),
        (["embed", "m", "-o", "o.npy", "--on-long", "truncat"], "did you mean truncate?"),
        (["--device", "cpu", "embed"], "it goes behind the command: pyenc embed --device"),
        (["--device", "cpu", "verify"], "it goes behind the command: pyenc verify --device"),
        (["--batch-size", "3", "embed"], "did you mean --batch-tokens? It goes behind the command"),
        (["--atol", "3", "verify"], "pyenc verify --tolerance"),
        (["--num-workers", "3", "embed"], "OMP_NUM_THREADS"),
        (["embed", "m", "-o", "o.npy", "--pooling", "avg"], "did you mean mean?"),
        (["info", "m", "--pooling", "eos"], "did you mean lasttoken?"),
        (["info", "m", "--pooling", "cls,max_tokens"], "invalid choice: 'cls,max_tokens'"),
        (["info", "m", "x"], "info takes MODEL alone"),
        (["verify", "m", "a.txt"], "a file of texts as --texts FILE"),
    ],
)
def test_words(fails: Fails, words: list[str], meant: str) -> None:
    assert meant in fails(*words)


@pytest.mark.parametrize(
    "option", ["--max-length", "--batch-tokens", "--shard", "--pooling", "--format"]
)
def test_a_message_has_bounds(fails: Fails, option: str) -> None:
    message = fails("embed", "m", "-o", "o.npy", option, "1/" * (option == "--shard") + "9" * 5000)
    assert len(message) < 300
    assert "_" not in message.replace("mean_sqrt_len_tokens", "")


def test_nothing_near_is_nothing_said(fails: Fails) -> None:
    assert fails("info", "m", "--wings") == (
        "pyenc: error: unknown option --wings (see pyenc info --help)\n"
    )
    assert "did you mean" not in fails("fly")


def test_several_inputs(fails: Fails) -> None:
    message = fails("embed", "m", "a.txt", "b.txt", "-o", "o.npy")
    assert "'b.txt'" in message
    assert "cat FILES" in message
    assert "(see pyenc embed --help)" in message


def test_what_argparse_takes_is_still_taken() -> None:
    words = ["embed", "m", "--prompt", "- a list", "--norm", "-oout.npy", "--max-len=7", "--", "-"]
    args = build_parser().parse_args(words)
    assert (args.prompt, args.normalize, args.output) == ("- a list", True, "out.npy")
    assert (args.max_length, args.input) == (7, "-")


@pytest.mark.parametrize(
    "words",
    [
        ["m", "t.txt", "-o", "o.npy"],
        ["m", "-o", "o.npy", "t.txt"],
        ["-o", "o.npy", "m", "t.txt"],
        ["-o", "o.npy", "m", "--normalize", "t.txt"],
        ["m", "-o", "o.npy", "--", "t.txt"],
    ],
)
def test_the_input_may_stand_anywhere(words: list[str]) -> None:
    args = build_parser().parse_args(["embed", *words])
    assert (args.model, args.input, args.output) == ("m", "t.txt", "o.npy")


def test_what_is_listed_is_ours_and_what_others_say_is_not() -> None:
    parser = build_parser()
    (commands,) = [a for a in parser._actions if a.dest == "command"]
    assert commands.choices is not None
    for command in commands.choices.values():
        for name in command._option_string_actions:
            near = nearest.nearest(name, command._option_string_actions)
            assert near == name, (name, near)

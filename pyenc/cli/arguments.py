"""The arguments of every command and their help; imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from . import bench_options, descriptions
from .argument_values import OF_LINEAR, backend, positive, shard, tolerance
from .parser import Parser

BACKENDS = (
    "auto",
    "triton",
    "cpu",
    "flash_attn",
    "torch",
    "reference",
)
"""`pyenc.ops.BACKENDS` and "auto", repeated here since importing it would import torch."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
QUANTIZE = ("int8",)
"""The names that `pyenc.load` takes, repeated for the same reason."""

POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
"""`pyenc.text.recipe.POOLINGS`, likewise."""


class Poolings(tuple[str, ...]):
    """Names of poolings, among which are several of them with commas between."""

    def __contains__(self, said: object) -> bool:
        return all(super(Poolings, self).__contains__(each) for each in str(said).split(","))


PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
"""`pyenc.text.precision.DTYPES`, likewise."""

FORMATS = ("txt", "jsonl", "parquet")

READABLE = ".txt, .jsonl, .parquet"


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="pyenc",
        description="Published long-context text encoders: embed, inspect, verify, measure.",
        epilog="pyenc COMMAND --help says more. Exit status: 0 done, 1 wrong results, 2 error, "
        "128 + its number where a signal ended it (130 Ctrl-C, 141 a reader that went away).",
    )
    parser.add_argument("-V", "--version", action="version", version=f"pyenc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    embed = commands.add_parser(
        "embed",
        help="texts in, vectors out, resumable",
        description=descriptions.EMBED,
        epilog=descriptions.EMBED_EXAMPLES,
        formatter_class=raw,
    )
    _embed(embed)
    info = commands.add_parser(
        "info", help="what a checkpoint is and which backend would serve it",
        description=descriptions.INFO,
    )  # fmt: skip
    _model(info)
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    models = commands.add_parser(
        "models", help="the checkpoints that are served, and how far each was checked",
        description=descriptions.MODELS,
    )  # fmt: skip
    form = models.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="the table of docs/checkpoints.md")
    verify = commands.add_parser(
        "verify", help="compare with the float64 reference or stored vectors",
        description=descriptions.VERIFY,
    )  # fmt: skip
    _verify(verify)
    bench = commands.add_parser(
        "bench",
        help="ops and encoders beside their peers (in a checkout)",
        description=bench_options.BENCH,
        epilog=bench_options.BENCH_EXAMPLES,
        formatter_class=raw,
    )
    bench_options.add_to(bench)
    for name, each in commands.choices.items():
        each.beside = {other: p for other, p in commands.choices.items() if other != name}
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command. `pyenc bench OP -- ...` is read as without the --."""
    words = list(argv)
    if words[:1] == ["bench"] and "--" in words:
        words.remove("--")
    return build_parser().parse_args(words)


def _embed(parser: Parser) -> None:
    _model(parser)
    parser.add_argument(
        "input", metavar="INPUT", nargs="?", default="-", help=f"- or a file: {READABLE}"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True,
        help="file: .npy, .jsonl, .parquet; of a symbolic link, what it points at is written, and "
        "OUT.partial, OUT.skipped.jsonl and OUT.ranges.npy are beside that, named after it",
    )  # fmt: skip
    _fields(parser, "INPUT")
    parser.add_argument(
        "--id-field", metavar="NAME", help="strings or whole numbers to carry into OUT as its id"
    )
    work = parser.add_argument_group("the run")
    work.add_argument(
        "--overwrite", action="store_true", help="replace OUT, and drop what an older run left"
    )
    work.add_argument(
        "--resume",
        action="store_true",
        help="go on with OUT.partial/, or start where there is none",
    )
    work.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out rows that cannot be read or embedded, and list them in OUT.skipped.jsonl",
    )
    work.add_argument(
        "--shard",
        metavar="I/N",
        type=shard,
        default=(1, 1),
        help="rows I, I + N, I + 2N, ... of the input only (I from 1); their index stays that of "
        "the whole input",
    )
    work.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a progress bar; default: if standard error is a terminal",
    )
    encoding = _encoding(parser)
    encoding.add_argument(
        "--on-long",
        choices=("truncate", "error"),
        default="truncate",
        help="texts beyond the maximum length: cut them and count them, or stop",
    )
    encoding.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the numbers in OUT: a byte a dimension (int8, uint8), or a bit, eight a byte "
        "(binary as int8, ubinary as uint8), as in sentence-transformers (default: %(default)s)",
    )
    ranges = encoding.add_mutually_exclusive_group()
    ranges.add_argument(
        "--ranges",
        metavar="FILE",
        help=".npy (2, dim): least and greatest value of each dimension, for int8 and uint8; all "
        "that is compared, shards and queries too, must be made with the same",
    )
    ranges.add_argument(
        "--calibration",
        metavar="FILE",
        help=f"texts to take them from, {READABLE}, a few thousand like INPUT's (either way "
        "OUT.ranges.npy has the ranges)",
    )


def _verify(parser: Parser) -> None:
    _model(parser)
    parser.add_argument(
        "--texts", metavar="FILE", help=f"texts to run, {READABLE} or -; default: a few of our own"
    )
    _fields(parser, "--texts")
    parser.add_argument(
        "--against",
        metavar="FILE",
        help="stored vectors of --texts, .npy or .jsonl as `pyenc embed` writes them",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=tolerance,
        help="largest absolute error, for values up to 1 in size and in proportion beyond; "
        "default 2e-5 in float32, and twice the error of the plain computation in half precision; "
        "of scores, whose best is taken as 1, 0.001",
    )
    parser.add_argument(
        "--model-card",
        metavar="CARD",
        help="compare scores instead: the model-index of a card (its file, or a folder or Hub name "
        "that has a README.md) run again through mteb, where the data of its tasks are in the "
        "cache of `datasets`; the others are listed (needs: pip install 'pyenc[integrations]')",
    )
    _encoding(parser)


def _model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint's folder, or its Hub name")
    group = parser.add_argument_group("the model")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub name")
    group.add_argument(
        "--tokenizer", metavar="NAME", help="folder or Hub name of one, instead of MODEL's own"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: CUDA where there is one")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="arithmetic and weights; auto: as stored (default: %(default)s)",
    )
    group.add_argument(
        "--quantize", choices=QUANTIZE,
        help="linear layers in eight bits, on a CPU; default: as saved (the vectors' own bits are "
        "--precision of embed)",
    )  # fmt: skip
    group.add_argument(
        "--backend", choices=BACKENDS, type=backend,
        help="of every op; default: the fastest that can serve (of linear layers alone: the "
        f"environment variable PYENC_LINEAR, one of {', '.join(OF_LINEAR)}, torch)",
    )  # fmt: skip
    group.add_argument(
        "--task",
        metavar="NAME",
        help="whose adapter is used, of a checkpoint that has some (pyenc info); default: none",
    )
    group.add_argument(
        "--adapter",
        metavar="NAME",
        help="folder or Hub name of a LoRA adapter of peft, merged into MODEL's weights",
    )
    group.add_argument(
        "--pooling", choices=Poolings(POOLINGS),
        help="of token states; cls,mean: several, side by side; default: as the checkpoint says",
    )  # fmt: skip
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="vectors to unit length; default: as the checkpoint says",
    )


def _fields(parser: Parser, source: str) -> None:
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help=f"of {source}; default: by its suffix, of standard input txt",
    )
    parser.add_argument(
        "--field", metavar="NAME", help="the texts in .jsonl and .parquet (default: text)"
    )


def _encoding(parser: Parser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("how texts become vectors")
    before = group.add_mutually_exclusive_group()
    before.add_argument("--prompt", metavar="TEXT", help="put before every text")
    before.add_argument(
        "--prompt-name", metavar="NAME", help="one of the checkpoint's own prompts (pyenc info)"
    )
    before.add_argument(
        "--instruction", metavar="TEXT", help="INSTRUCTOR's: before every text, not in the mean"
    )
    group.add_argument(
        "--max-length", metavar="N", type=positive, help="tokens of a text; default the model's"
    )
    group.add_argument(
        "--truncate-dim", metavar="N", type=positive, help="keep the first N dimensions"
    )
    group.add_argument(
        "--layer-norm",
        action="store_true",
        help="layer norm before them, as the model card of nomic-embed-text-v1.5 asks",
    )
    group.add_argument(
        "--batch-tokens",
        metavar="N",
        type=positive,
        help="tokens of a batch; less needs less memory",
    )
    return group

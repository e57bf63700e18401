"""The arguments of every command and their help; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from .. import __version__
from . import bench_options
from .parser import Parser, shown

BACKENDS = (
    "auto",
    "triton",
    "cpu",
    "flash_attn",
    "torch",
    "reference",
)
"""`pyenc.ops.BACKENDS` and "auto", repeated here since importing it would import torch."""

OF_LINEAR = ("bf16x6", "bf16x3", "amx", "few_rows", "onednn")
"""`pyenc.ops.backend.OF_LINEAR`, likewise."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
QUANTIZE = ("int8",)
"""The names that `pyenc.load` takes, repeated for the same reason."""

POOLINGS = ("mean", "cls", "max", "lasttoken")
"""`pyenc.text.recipe.POOLINGS`, likewise."""

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
"""`pyenc.text.precision.DTYPES`, likewise."""

FORMATS = ("txt", "jsonl", "parquet")

READABLE = ".txt, .jsonl, .parquet"

EMBED = """\
Embed texts: one vector a text, in the order of the input.

INPUT  -         standard input, one text a line, or as --format says (the default)
       .txt      one text a line; an empty line is an empty text, so that rows stay aligned
       .jsonl    one object a line with the text under --field, or bare JSON strings; blank lines
                 are skipped (.ndjson is the same)
       .parquet  the column --field (needs pyarrow: pip install 'pyenc[parquet]')
OUT    .npy      float32 (or as --precision says), (texts, dim)
       .jsonl    {"index": row, "id": ..., "embedding": [...]} a line
       .parquet  columns index, id (with --id-field), embedding (fixed-size list of float,
                 or as --precision says)

Text is UTF-8. A line ends at \\n or \\r\\n, nowhere else. A row that cannot be read ends the run;
with --skip-bad it is left out, and OUT.skipped.jsonl has its row, id and reason. The index of a row
is its place in the input, bad rows counted; an .npy has no index, so rows close up.

Finished parts are kept in OUT.partial/, every few seconds, until OUT is complete and moved into
place in one step. An interrupted run (Ctrl-C, SIGTERM, a full disk) leaves no OUT; the same command
with --resume goes on where it stopped, after checking that checkpoint, options and texts are the
same. --device, --batch-tokens and --skip-bad may change: the first two move vectors by rounding
only. While a run is at work, a second one into the same OUT is refused and touches nothing.
"""

EMBED_EXAMPLES = """\
examples:
  pyenc embed sentence-transformers/all-MiniLM-L6-v2 texts.txt -o vectors.npy
  pyenc embed ./checkpoint corpus.jsonl --field body --id-field id -o vectors.parquet
  pyenc embed ./checkpoint corpus.parquet --shard 2/8 -o vectors-2.parquet --resume
  gunzip -c corpus.jsonl.gz | pyenc embed ./checkpoint --format jsonl -o vectors.npy
"""

INFO = """\
Load a checkpoint as strictly as ever and say what it is: its family and shape, its parameters and
files, its limits, pooling and prompts, and which backend would serve each op here, and why the
others would not.
"""

MODELS = """\
The published checkpoints that are served, family by family: whether that was verified with their
real weights, on small checkpoints made with the original code ("golden"), or not at all, and how
long a text may be.
"""

VERIFY = """\
Run a checkpoint as it would serve, and against the truth: the dense reference in float64 on the
CPU (its memory grows with the square of a text's length), or vectors stored before (--against).
Prints the largest absolute errors of token states and of vectors, and the smallest cosine.
Exits 0 within the tolerance, 1 with a line that begins with FAILED otherwise.
"""


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
        description=EMBED,
        epilog=EMBED_EXAMPLES,
        formatter_class=raw,
    )
    _embed(embed)
    info = commands.add_parser(
        "info", help="what a checkpoint is and which backend would serve it", description=INFO
    )
    _model(info)
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    models = commands.add_parser(
        "models", help="the checkpoints that are served, and how far each was checked",
        description=MODELS,
    )  # fmt: skip
    form = models.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--markdown", action="store_true", help="the README's table")
    verify = commands.add_parser(
        "verify", help="compare with the float64 reference or stored vectors", description=VERIFY
    )
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
        type=_shard,
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
        type=_tolerance,
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
        "--backend", choices=BACKENDS, type=_backend,
        help="of every op; default: the fastest that can serve (of linear layers alone: the "
        f"environment variable PYENC_LINEAR, one of {', '.join(OF_LINEAR)}, torch)",
    )  # fmt: skip
    group.add_argument(
        "--task",
        metavar="NAME",
        help="whose adapter is used, of a checkpoint that has some (pyenc info); default: none",
    )
    group.add_argument(
        "--pooling", choices=POOLINGS, help="of token states; default: as the checkpoint says"
    )
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
        "--max-length", metavar="N", type=_positive, help="tokens of a text; default the model's"
    )
    group.add_argument(
        "--truncate-dim", metavar="N", type=_positive, help="keep the first N dimensions"
    )
    group.add_argument(
        "--layer-norm",
        action="store_true",
        help="layer norm before them, as the model card of nomic-embed-text-v1.5 asks",
    )
    group.add_argument(
        "--batch-tokens",
        metavar="N",
        type=_positive,
        help="tokens of a batch; less needs less memory",
    )
    return group


MOST_DIGITS = 18
"""Of a whole number: more would be no number of tokens, nor fit into 64 bits."""


def _whole(word: str) -> int:
    """0 for what is no whole number."""
    return int(word) if word.isdecimal() and len(word.lstrip("0")) <= MOST_DIGITS else 0


def _positive(word: str) -> int:
    if _whole(word) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1, of {MOST_DIGITS} digits at most, got {shown(word)}"
        )
    return _whole(word)


def _backend(word: str) -> str:
    if word in OF_LINEAR:
        raise argparse.ArgumentTypeError(
            f"{word} is a choice of linear layers, which other ops have not; the environment "
            f"variable PYENC_LINEAR={word} asks for it"
        )
    return word


def _tolerance(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {shown(word)}")
    return value


def _shard(word: str) -> tuple[int, int]:
    i, slash, n = word.partition("/")
    if not (slash and 1 <= _whole(i) <= _whole(n)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {shown(word)}")
    return _whole(i), _whole(n)

"""What the commands say of themselves in their help."""

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

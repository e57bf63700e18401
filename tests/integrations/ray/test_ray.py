"""`Embed`: batch by batch in this process, and on two nodes with an actor that is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.integrations.texts import PROMPTED, expected

ray = pytest.importorskip("ray")
pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")

import pyarrow.parquet as pq

from pyenc.integrations.ray import Embed
from tests.integrations.ray.watched import Watched

TEXTS = ["one", "two three", "", "four five six", "seven"]


@pytest.fixture(scope="module")
def encoder() -> pyenc.TextEncoder:
    return pyenc.load(PROMPTED, device="cpu")


def batch_of(form: str, texts: list[Any]) -> Any:
    columns = {"id": list(range(10, 10 + len(texts))), "text": texts}
    if form == "pyarrow":
        return pa.table({"id": columns["id"], "text": pa.array(texts, pa.string())})
    if form == "pandas":
        return pd.DataFrame(columns)
    return {"id": np.array(columns["id"]), "text": np.array(texts, dtype=object)}


def columns_of(batch: Any) -> tuple[list[int], list[Any]]:
    """ids, vectors"""
    if isinstance(batch, pa.Table):
        return batch["id"].to_pylist(), batch["vector"].to_pylist()
    return list(batch["id"]), list(batch["vector"])


FORMS = ("pyarrow", "pandas", "numpy")


@pytest.mark.parametrize("form", FORMS)
def test_vectors_stand_beside_their_rows(encoder: pyenc.TextEncoder, form: str) -> None:
    given = batch_of(form, TEXTS)
    found = Embed(encoder)(given)
    assert isinstance(found, type(given))
    ids, vectors = columns_of(found)
    assert ids == [10, 11, 12, 13, 14]
    np.testing.assert_allclose(np.stack(vectors), expected(encoder, "passage: ", TEXTS), atol=1e-6)
    assert "vector" not in (given.column_names if form == "pyarrow" else given)
    if form == "pyarrow":
        assert found.schema.field("vector").type == pa.list_(pa.float32(), encoder.dim)


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(encoder: pyenc.TextEncoder, form: str) -> None:
    assert columns_of(Embed(encoder)(batch_of(form, []))) == ([], [])


@pytest.mark.parametrize(
    ("options", "prompt"),
    [({"kind": "query"}, "query: "), ({"kind": None}, ""),
     ({"encode_kwargs": {"prompt": "said: "}}, "said: ")],
)  # fmt: skip
def test_prompts(encoder: pyenc.TextEncoder, options: dict[str, Any], prompt: str) -> None:
    found = Embed(encoder, **options)(batch_of("numpy", TEXTS))
    np.testing.assert_allclose(found["vector"], expected(encoder, prompt, TEXTS), atol=1e-6)


def test_other_columns_and_options(encoder: pyenc.TextEncoder) -> None:
    ours = Embed(
        PROMPTED, text="id", vector="v", model_kwargs={"device": "cpu", "dtype": "float64"},
        encode_kwargs={"truncate_dim": 8},
    )  # fmt: skip
    found = ours({"id": np.array(["a"]), "text": np.array([None])})
    assert found.keys() == {"id", "text", "v"}
    assert found["v"].shape == (1, 8)
    assert found["v"].dtype == np.float32
    assert str(ours.encoder.model.dtype) == "torch.float64"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("texts", [["a", None, "b", None], [None], [None, "a"]])
def test_null_texts(encoder: pyenc.TextEncoder, form: str, texts: list[Any]) -> None:
    given = batch_of(form, texts)
    row = texts.index(None)
    with pytest.raises(pyenc.InputError, match=rf"column 'text' is null in row {row} of") as error:
        Embed(encoder)(given)
    assert f"(id={10 + row})" in str(error.value).replace("np.int64(", "").replace("))", ")")
    there = [text for text in texts if text is not None]
    right = expected(encoder, "passage: ", there)
    ids, vectors = columns_of(Embed(encoder, on_null="drop")(given))
    assert ids == [10 + i for i, text in enumerate(texts) if text is not None]
    np.testing.assert_allclose(np.array(vectors).ravel(), right.ravel(), atol=1e-6)
    ours = Embed(encoder, on_null="null")
    if form == "numpy":
        with pytest.raises(pyenc.InputError, match="batch_format='pyarrow'"):
            ours(given)
        return
    ids, vectors = columns_of(ours(given))
    assert ids == list(range(10, 10 + len(texts)))
    assert [vector is None for vector in vectors] == [text is None for text in texts]
    for vector, value in zip([v for v in vectors if v is not None], right, strict=True):
        np.testing.assert_allclose(vector, value, atol=1e-6)


def test_what_pandas_has_for_null(encoder: pyenc.TextEncoder) -> None:
    for null in (float("nan"), pd.NA, pd.NaT):
        given = pd.DataFrame({"text": pd.Series(["a", null], dtype=object)})
        assert len(Embed(encoder, on_null="drop")(given)) == 1
    given = pd.DataFrame({"text": pd.Series(["a", None], dtype="string")})
    with pytest.raises(pyenc.InputError, match="is null in row 1 of the batch"):
        Embed(encoder)(given)


def test_not_for_single_rows_and_not_for_ranges_of_each_batch(encoder: pyenc.TextEncoder) -> None:
    with pytest.raises(pyenc.InputError, match=r"is for Dataset\.map_batches, and not for map"):
        Embed(encoder)({"text": "a row of Dataset.map"})
    many = pa.table({"text": [f"text {n}" for n in range(120)]})
    with pytest.raises(pyenc.InputError, match="needs ranges= or calibration="):
        Embed(encoder, encode_kwargs={"precision": "int8"})(many)
    as_tensors = Embed(encoder, encode_kwargs={"convert_to_tensor": True})
    assert as_tensors(many).equals(Embed(encoder)(many))


def test_bad_input(encoder: pyenc.TextEncoder) -> None:
    with pytest.raises(pyenc.InputError, match="no column 'body'; the batch has: id, text"):
        Embed(encoder, text="body")(batch_of("pyarrow", TEXTS))
    with pytest.raises(pyenc.InputError, match="a column 'id' already"):
        Embed(encoder, vector="id")(batch_of("pandas", TEXTS))
    with pytest.raises(pyenc.InputError, match=r"column 'id' is 11 \(int\)"):
        Embed(encoder, text="id")({"id": np.array(["a", 11], dtype=object)})
    with pytest.raises(pyenc.InputError, match="on_null must be one of error, drop, null"):
        Embed(encoder, on_null="skip")
    with pytest.raises(pyenc.InputError, match="kind must be one of query, document"):
        Embed(encoder, kind="passage")
    with pytest.raises(
        pyenc.InputError, match=r"^Embed\(\) has no argument 'batch_size'; that is enc"
    ):
        Embed(encoder, batch_size=3)  # type: ignore[call-arg]
    with pytest.raises(pyenc.InputError, match=r"got str; Embed is for Dataset\.map_batches"):
        Embed(encoder)("a text")


# Two nodes, on this machine: Ray's own processes, so no other test starts them.

ROWS, PARTS = 240, 6


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # The raylets' children find this tree as this process does.
    root = Path(__file__).resolve().parents[3]
    paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    # One actor a node: each takes the node's slot.
    node = {"num_cpus": 2, "object_store_memory": 100 << 20, "resources": {"slot": 1}}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False}
    )  # fmt: skip
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_two_nodes_and_an_actor_killed_midway(
    two_nodes: None, encoder: pyenc.TextEncoder, tmp_path: Path
) -> None:
    """Parquet in, Parquet out: every row once, none lost, each with its own vector."""
    texts = [f"text {i} " + "more " * (i % 7) for i in range(ROWS)]
    (tmp_path / "in").mkdir()
    for part in range(PARTS):
        ids = list(range(part, ROWS, PARTS))
        table = pa.table({"id": ids, "text": [texts[i] for i in ids]})
        pq.write_table(table, tmp_path / "in" / f"{part}.parquet")
    flag = tmp_path / "killed"
    data = ray.data.read_parquet(str(tmp_path / "in")).repartition(PARTS)  # else one small block
    vectors = data.map_batches(
        Watched,
        fn_constructor_args=(PROMPTED, flag),
        batch_format="pyarrow",
        batch_size=10,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.5,
        resources={"slot": 1},
    )
    vectors.write_parquet(str(tmp_path / "out"))
    assert flag.exists(), "no actor was killed"
    # By another reader than Ray's.
    found = pq.read_table(tmp_path / "out").sort_by("id")
    assert found["id"].to_pylist() == list(range(ROWS))
    assert found["text"].to_pylist() == texts
    assert found.schema.field("vector").type in (
        pa.list_(pa.float32(), encoder.dim), pa.list_(pa.float32()),
    )  # fmt: skip
    np.testing.assert_allclose(
        np.array(found["vector"].to_pylist()), expected(encoder, "passage: ", texts), atol=1e-5
    )
    assert len(set(found["node"].to_pylist())) == 2, "one node did it all"
    assert len(set(found["process"].to_pylist())) >= 2


@pytest.mark.slow
def test_a_null_text_ends_the_run_and_is_named(two_nodes: None, tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2, 3], "text": ["a", None, "b"]})
    data = ray.data.from_arrow(table).map_batches(
        Embed, fn_constructor_args=(PROMPTED,), batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5,
    )  # fmt: skip
    with pytest.raises(Exception, match=r"column 'text' is null in row 1 of the batch \(id=2\)"):
        data.take_all()

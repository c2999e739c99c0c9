"""The studies on real data and the tables of the benchmarks: how files are read and written, and what is said where there are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("benchmarks", reason="the source distribution has no benchmarks")

from benchmarks import graphs, mnist, report


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"lacks PROTEINS_A.txt, .*\n.*TU format"):
        graphs.main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"lacks train-images-idx3-ubyte.gz, .*\n.*four files of MNIST"):
        mnist.main([str(tmp_path)])


def test_graphs_are_read(tmp_path: Path) -> None:
    """A path of three nodes, and a pair with a self loop, which is dropped."""
    (tmp_path / "T").mkdir()
    texts = {"A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n5, 5", "graph_indicator": "1\n1\n1\n2\n2"}
    texts |= {"graph_labels": "1\n2", "node_labels": "7\n9\n7\n9\n9"}
    for part, text in texts.items():
        (tmp_path / "T" / f"T_{part}.txt").write_text(text)
    (path, pair), classes = graphs.load(tmp_path, "T")
    assert path.adjacency.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert pair.adjacency.tolist() == [[0, 1], [1, 0]]
    assert path.features.tolist() == [[1, 0], [0, 1], [1, 0]] and pair.features.tolist() == [[0, 1], [0, 1]]
    assert classes.tolist() == [1, 2]


def test_images_are_read(tmp_path: Path) -> None:
    """Every image keeps its class in the order that is drawn; pixels are from 0 to 1."""
    labels = np.arange(5, dtype=np.uint8)
    images = np.repeat(51 * labels, 16).reshape(5, 4, 4)
    for name in mnist.FILES:
        array = images if "images" in name else labels
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / name).write_bytes(gzip.compress(head + array.tobytes()))
    train, test = mnist.load(tmp_path)
    assert train.x.shape == test.x.shape == (5, 4, 4, 1)
    assert np.allclose(train.x[:, 0, 0, 0], train.y / 5) and sorted(test.y) == list(range(5))
    assert np.allclose(mnist.averaged(train.x, 2), train.x[:, :2, :2])
    (tmp_path / mnist.FILES[0]).write_bytes(gzip.compress(b"\0\0\x0dfloats"))
    with pytest.raises(SystemExit, match="expected an IDX file of bytes"):
        mnist.load(tmp_path)


def test_ridge_regression() -> None:
    """Two clusters are told apart; every ridge would do."""
    x = np.concatenate([np.eye(2)[[0] * 10], np.eye(2)[[1] * 10]])[np.random.default_rng(0).permutation(20)]
    classes = x[:, 1].astype(int)
    assert mnist.fit(x @ x.T, x[:6] @ x.T, classes, classes[:6])["accuracy"] == 1


def test_choice_without_a_look_at_the_test_graphs() -> None:
    """Two kernels, two folds, two C: chosen by the training graphs in each fold; best by the mean over test folds."""
    inner = np.array([[[0.5, 0.9], [0.5, 0.6]], [[0.6, 0.7], [0.8, 0.1]]])
    outer = np.array([[[0.1, 0.2], [0.3, 0.9]], [[0.5, 0.8], [0.4, 0.7]]])
    table = graphs.Table(inner, outer)
    assert table.chosen().tolist() == [0.2, 0.4]
    assert table.best().tolist() == [0.8, 0.7]


def test_cross_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clusters are told apart with every C."""
    monkeypatch.setattr(graphs, "PENALTIES", [0.1, 10.0])
    x = np.eye(2)[np.arange(60) % 2]
    table = graphs.cross_validate(x @ x.T, np.arange(60) % 2)
    assert table.outer.shape == (1, graphs.FOLDS, 2) and table.outer.min() == 1


def test_the_table_of_the_readme_is_replaced_between_its_marks(tmp_path: Path) -> None:
    machine = {"cpu": "a processor", "cores": 2, "memory_gb": 8.0, "system": "Linux"}
    row = {"title": "a case", "ours": {"median_s": 0.01}, "peer": {"median_s": 0.2}, "ratio": 20.0}
    result = {
        "rows": [row, {"title": "ours alone", "ours": {}}],
        "date": "2026-01-02",
        "machine": machine,
        "commit": "abc",
    }
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    for _ in range(2):
        report.write_readme(page, result)
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("after\n")
        assert "| a case | 0.01 | 0.2 | 20 | - |" in text and "old" not in text and text.count("a case") == 1
    page.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        report.write_readme(page, result)
    assert page.read_text() == "nothing"

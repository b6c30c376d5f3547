"""The benchmark counts what it says it counts, and prints every scheme."""

import json

import torch

import video_attention as va
from tiny_data import benchmark

SMALL = ["--grid", "2", "4", "6", "--dim", "24", "--heads", "4", "--repeats", "1"]


def test_views_are_not_calls():
    x = torch.randn(2, 3, 4)
    with benchmark.CallCounter() as counter:
        x.transpose(0, 1)[:, 1:].unflatten(2, (2, 2)) + 1  # three views, one call
        x.transpose(0, 1).reshape(6, 4)  # a copy
        x.add_(1)  # gives back what it got, but writes
    assert counter.calls == 3


def test_joint_attention_by_hand():
    counts = benchmark.counted(va, "joint", (8, 14, 14), 768, 12)
    N = 1 + 8 * 14 * 14
    assert counts["parameters"] == 4 * 768**2 + 4 * 768
    assert counts["macs"] == 4 * N * 768**2 + 2 * N**2 * 768
    assert counts["calls"] == 8  # two projections, scaling, product, softmax, product; one copy


def test_every_scheme_has_a_row(capsys):
    benchmark.main([*SMALL, "--schemes", "joint", "divided", "trajectory"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-5:]]
    assert [row[0] for row in rows[2:]] == ["| joint", "| divided", "| trajectory"]
    assert {len(row) for row in rows} == {9}


def test_against_another_file(capsys):
    benchmark.main([*SMALL, "--schemes", "axial", "--against", va.__file__, "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["calls"] == row["calls_before"] and row["peak_mb"] == row["peak_mb_before"] > 0

"""Programs, plans and trained models that an older version wrote load, and give the codes that they gave then.

The files are `tests.golden.models`'; whatever presets, nodes and plans become, these stay what they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import truequant as tq
from tests.golden.models import HERE, digests
from tests.golden.nets import NETS, net
from truequant.integer.nodes import FLOATING
from truequant.integer.serialize import to_container

FILES = sorted(HERE.glob("*/*.tq"))


def named(path: Path) -> str:
    return f"{path.parent.name} {path.stem}"


def before_islands(int8: tq.Int8Model) -> set[str]:
    """The edges of codes that no float sum reaches: other CPUs sum the rest in another order."""
    program = int8.program
    exact = {given.name for given in program.inputs}
    for node in program.nodes:
        if not isinstance(node, FLOATING) and exact.issuperset(node.reads):
            exact.add(node.output)
    return exact & program.edges.keys()


def test_every_kind_of_model_has_files() -> None:
    assert {path.stem.rpartition("-")[0].split("-")[0] for path in FILES} == set(NETS)
    assert len(FILES) == 9


@pytest.mark.parametrize("path", FILES, ids=named)
def test_an_old_program_gives_the_codes_that_it_gave(path: Path) -> None:
    int8 = tq.load(path)
    example = NETS[path.stem.split("-")[0]][1]
    then, exact = json.loads(path.with_suffix(".json").read_text()), before_islands(int8)
    now = digests(int8.codes(example))
    assert now.keys() == then.keys()
    assert {name: now[name] for name in exact} == {name: then[name] for name in exact}
    if path.stem.startswith("convolutions"):
        assert exact == then.keys()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_an_old_trained_model_converts_to_the_program_that_it_gave(path: Path) -> None:
    name = path.stem.split("-")[0]
    plan = tq.Plan.from_json(path.with_suffix(".plan.json").read_text())
    example = NETS[name][1]
    prepared, unprepared = tq.prepare(net(name), example, plan), net(name)
    for trained in (prepared, unprepared):
        assert tq.load_checkpoint(path.with_suffix(".ckpt"), model=trained).kind == "qat"
    loaded, again = prepared.state_dict(), unprepared.state_dict()
    assert loaded.keys() == again.keys()
    assert all(torch.equal(loaded[key], again[key]) for key in loaded)
    now, then = tq.convert(unprepared.eval()), tq.load(path)
    tensors, then_tensors = to_container(now.program)[1], to_container(then.program)[1]
    # What a site is made of may change, and an island is named by its place in torch's graph.
    edges, layers = ({key for key in found if "@" not in key} for found in (then.program.edges, then_tensors))
    assert layers
    assert layers <= tensors.keys()
    assert all(torch.equal(tensors[key], then_tensors[key]) for key in layers)
    assert all(now.program.edges[name] == then.program.edges[name] for name in edges)
    codes, then_codes = now.codes(example), then.codes(example)
    assert edges <= codes.keys()
    assert all(torch.equal(codes[name], then_codes[name]) for name in edges & then_codes.keys())
    assert torch.isfinite(prepared.train()(example)).all()

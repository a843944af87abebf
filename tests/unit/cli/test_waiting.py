"""Threads wait asleep in every command, unless the user has said how they shall wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from truequant.cli.waiting import CHOSEN, waiting


def test_what_the_user_has_set_stays() -> None:
    assert waiting({"PATH": "/bin", "OMP_NUM_THREADS": "2"}) == {"OMP_WAIT_POLICY": "PASSIVE"}
    for name in CHOSEN:
        assert waiting({name: "anything"}) == {}


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=["not said", "said"])
def test_openmp_and_onnxruntime_read_it(chosen: dict[str, str]) -> None:
    code = (
        "import os\nfrom truequant.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import onnxruntime, torch; from onnx import TensorProto, helper\n"
        "from truequant.runtimes.onnxruntime.session import session\n"
        "value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])\n"
        "graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [value('x')], [value('y')])\n"
        "model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 21)])\n"
        "options = session(model.SerializeToString()).get_session_options()\n"
        "key = 'session.intra_op.allow_spinning'\n"
        "try: print('spins', options.get_session_config_entry(key))\n"
        "except RuntimeError: print('spins by default')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env={**environment, **chosen, "OMP_DISPLAY_ENV": "true"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    policy = chosen.get("OMP_WAIT_POLICY", "PASSIVE")
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr or sys.platform != "linux"  # what libgomp took it to be
    assert done.stdout.splitlines()[-1] == ("spins 0" if policy == "PASSIVE" else "spins by default")

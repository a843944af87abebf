"""A config from a TOML file says what the same config in Python says; a wrong key is named with its place."""

from pathlib import Path

import pytest

from truequant.errors import SchemeError
from truequant.schemes import LSQ, ONNXRUNTIME_VNNI, Percentile, PerChannel, QConfig, QuantScheme, Rule, int4


def write(folder: Path, text: str) -> Path:
    path = folder / "q.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_equals_python(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        preset = "w7a8"
        target = "onnxruntime-vnni"
        observer = { kind = "percentile", percent = 99.9 }
        [[rule]]
        select = "classifier"
        float = true
        [[rule]]
        select = "features.0.*"
        weight = { dtype = "int4", granularity = { kind = "per-channel", axis = 0 }, scale = "lsq" }
        output = "float"
        """,
    )
    config = QConfig.from_file(path)
    expected = QConfig.preset("w7a8").with_observer(Percentile(99.9))
    assert (config.weight, config.activation, config.target) == (expected.weight, expected.activation, ONNXRUNTIME_VNNI)
    weight = QuantScheme(int4, PerChannel(0), scale=LSQ())
    assert config.rules == (Rule("classifier", None), Rule("features.0.*", weight=weight, output=None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('presett = "w8a8"', "unknown key 'presett'"),
        ('preset = "w9a9"', "no preset 'w9a9'"),
        ('target = "gpu"', "target: unknown name"),
        ('weight = { dtype = "int99" }', "no integer type 'int99'"),
        ('observer = { kind = "percentile", percent = 101 }', "percent out of range"),
        ('observer = { kind = "percentile", percents = 9 }', "unknown key 'percents'"),
        ("rule = 3", "rule is no list of tables"),
        ("[[rule]]\nfloat = true", "rule 0: no selector"),
        ("= =", "cannot be read as TOML"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        QConfig.from_file(write(tmp_path, text))


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="cannot be read as TOML"):
        QConfig.from_file(tmp_path / "absent.toml")
    with pytest.raises(SchemeError, match="too large"):
        QConfig.from_file(write(tmp_path, "#" * (1 << 21)))

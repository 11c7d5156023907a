import json
from pathlib import Path

import jsonschema
import pytest

from reward_model.contract import Contract, LossSpec, json_schema
from reward_model.errors import CheckpointError


def contract(**changes: object) -> Contract:
    settings = {"bos": "none", "append_eos": True, "pooling": "last", "max_length": 512}
    return Contract.model_validate(settings | changes)


def test_lambda_is_spelled_so_in_the_file(tmp_path: Path) -> None:
    loss = LossSpec(name="bt_bsr", lambda_=1e-3, scope="global", scale="reference")
    contract(loss=loss).write(tmp_path)
    document = json.loads((tmp_path / "reward_model.json").read_text())
    assert document["loss"]["lambda"] == 1e-3
    jsonschema.validate(document, json_schema())
    assert Contract.read(tmp_path).loss == loss


def test_the_version_is_of_weights_and_contract(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = contract().write(tmp_path)
    assert first.verify(tmp_path) == first
    assert contract(max_length=256).compute_version(tmp_path) != first.model_version
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(CheckpointError, match="have changed"):
        first.verify(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{}", "bos"), ("not json", "JSON"), ('{"bos": "two"}', "bos")],
)
def test_a_broken_contract_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "reward_model.json").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        Contract.read(tmp_path)

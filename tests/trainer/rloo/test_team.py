import pytest

from reward_model.errors import UsageError
from trainer.rloo.team import Team


@pytest.mark.parametrize(
    ("environment", "lora", "part"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, False, "DeepSpeed is not supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            True,
            "lora: not supported under FSDP2",
        ),
    ],
)
def test_what_the_launcher_asks_in_vain(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], lora: bool, part: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=part):
        Team.join("cpu", lora=lora)

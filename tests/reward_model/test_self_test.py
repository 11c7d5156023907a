from pathlib import Path

from torch import Tensor

from reward_model.model import RewardModel
from reward_model.self_test import self_test
from tests.checkpoints import tiny_checkpoint


def test_it_passes_on_a_sound_model(tmp_path: Path) -> None:
    result = self_test(RewardModel.load(tiny_checkpoint(tmp_path / "m")))
    assert result.passed
    assert result.compared == 3 * 14


def test_it_notices_scores_that_lean_on_their_neighbours(tmp_path: Path) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path / "m"))

    def lean(module: object, inputs: object, output: Tensor) -> Tensor:
        return output + 1e-6 * output.mean()

    model.classifier.model.layers[0].mlp.register_forward_hook(lean)
    assert not self_test(model).passed

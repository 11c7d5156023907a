"""``python -m trainer.evaluation``: a checkpoint or a reward URL in, results and a report out."""

import sys

from reward_model.command import run
from trainer.evaluation.config import EvaluationSettings


def _evaluate(settings: EvaluationSettings) -> None:
    # Imported here so that wrong settings are reported before torch has loaded.
    from trainer.evaluation.evaluate import RESULTS, evaluate

    evaluate(settings)
    print(f"results written to {settings.output_dir / RESULTS}")


def main() -> int:
    return run(EvaluationSettings, _evaluate, prog="python -m trainer.evaluation")


if __name__ == "__main__":
    sys.exit(main())

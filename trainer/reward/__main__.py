"""``python -m trainer.reward --config FILE``: preference pairs in, a reward model out."""

import sys

from reward_model.command import run
from trainer.reward.config import RewardSettings


def _command(settings: RewardSettings) -> None:
    # Imported here so that --help and a wrong key answer at once.
    from transformers.utils import logging

    from trainer.reward.ranks import leave
    from trainer.reward.sweep import sweep
    from trainer.reward.train import train

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a fresh head is what is wanted here, not a warning
    if settings.seeds > 1:
        sweep(settings)
    else:
        train(settings)
    leave()


def main() -> int:
    return run(RewardSettings, _command, prog="python -m trainer.reward")


if __name__ == "__main__":
    sys.exit(main())

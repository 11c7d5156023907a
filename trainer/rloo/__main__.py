"""``python -m trainer.rloo --config FILE``: prompts and a reward URL in, a policy out."""

import signal
import sys

from reward_model.command import run
from trainer.rloo.config import RlooSettings


def _train(settings: RlooSettings) -> None:
    # Imported here so that wrong settings are reported before torch has loaded.
    from trainer.rloo.train import train

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the run has its own

    if (path := train(settings)) is not None:
        print(f"policy written to {path}")


def main() -> None:
    sys.exit(run(RlooSettings, _train, prog="python -m trainer.rloo"))


if __name__ == "__main__":
    main()

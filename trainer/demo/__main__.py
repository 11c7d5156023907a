"""``python -m trainer.demo --scale full``: the whole system on a world of its own."""

import sys

from reward_model.command import run
from trainer.demo.config import DemoSettings


def _demo(settings: DemoSettings) -> None:
    # Imported here so that wrong settings are reported before torch has loaded.
    from trainer.demo.demo import Demo

    Demo(settings).run()


def main() -> int:
    return run(DemoSettings, _demo, prog="python -m trainer.demo")


if __name__ == "__main__":
    sys.exit(main())

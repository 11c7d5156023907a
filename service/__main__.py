"""``python -m service --model [NAME=]DIR …``: serve reward models."""

import sys

from reward_model.command import run
from service.settings import ServiceSettings


def main() -> int:
    return run(ServiceSettings, _serve, prog="python -m service")


def _serve(settings: ServiceSettings) -> None:
    # Imported here: the help text and a wrong flag should not wait for torch.
    if settings.ray:
        from service.ray_process import serve_on_ray

        serve_on_ray(settings)
    else:
        from service.server import serve

        serve(settings)


if __name__ == "__main__":
    sys.exit(main())

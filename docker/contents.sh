#!/usr/bin/env bash
# What an image holds, one line each: Debian packages, then Python packages, name and version.
#     bash docker/contents.sh sumzero:cpu > contents.txt
# Compare two of them with diff, or hand one to whoever asks what runs there.
set -euo pipefail
image=${1:?usage: docker/contents.sh IMAGE}
inside() { docker run --rm --network none --read-only --entrypoint "$1" "$image" "${@:2}"; }
inside dpkg-query -W -f 'deb ${Package} ${Version}\n'
inside python -I -c '
from importlib.metadata import distributions
for name, version in sorted((d.name.lower(), d.version) for d in distributions()):
    print("pip", name, version)'

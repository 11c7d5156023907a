"""Ask the service in this container whether it is ready to score; exit 1 when it is not."""

import os
import sys
import urllib.error
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('SUMZERO_PORT', '8000')}/ready"
try:
    with urllib.request.urlopen(url, timeout=4) as answer:
        print(answer.read(500).decode())
except (urllib.error.URLError, OSError) as error:
    sys.exit(f"{url}: {error}")

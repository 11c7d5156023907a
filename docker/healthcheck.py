"""Is what runs in this container well? Exit 1 when it is not.

Without arguments: can the service score? With URLs: do all of them answer 200? (Probes of Ray's
nodes use it, for the images have neither curl nor wget.)
"""

import os
import sys
import urllib.error
import urllib.request

service = f"http://127.0.0.1:{os.environ.get('SUMZERO_PORT', '8000')}/ready"
for url in sys.argv[1:] or [service]:
    try:
        with urllib.request.urlopen(url, timeout=4) as answer:
            print(answer.read(500).decode())
    except (urllib.error.URLError, OSError) as error:
        sys.exit(f"{url}: {error}")

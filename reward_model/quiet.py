"""Stdout is for answers: what a library says there while it is imported is left out.

transformers imports DeepSpeed wherever it is installed, and DeepSpeed tells stdout when it sees no
GPU. Set when this package is imported.
"""

import logging

logging.getLogger("DeepSpeed").addFilter(lambda record: record.filename != "real_accelerator.py")

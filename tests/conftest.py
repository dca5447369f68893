"""Everything here runs offline and quietly, each worker on one core."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("COLUMNS", "80")
os.environ.setdefault("OMP_NUM_THREADS", "1")

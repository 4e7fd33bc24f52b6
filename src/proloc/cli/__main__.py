"""``python -m proloc.cli``."""

import sys

from proloc.cli.main import main

if __name__ == "__main__":  # worker processes import this file too
    sys.exit(main())

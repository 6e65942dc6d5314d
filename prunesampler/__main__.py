"""``python -m prunesampler``."""

import sys

from prunesampler.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

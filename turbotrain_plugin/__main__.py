"""``python -m turbotrain_plugin``: the command line."""

import sys

from turbotrain_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())

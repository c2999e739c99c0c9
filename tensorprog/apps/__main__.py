"""`python -m tensorprog.apps` is the command line."""

import sys

from tensorprog.apps.command import main

if __name__ == "__main__":
    sys.exit(main())

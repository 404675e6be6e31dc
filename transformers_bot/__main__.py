"""`python -m transformers_bot` is the command line, for where the script is not on the path."""

import sys

from .cli import main

sys.exit(main())

"""``python -m inference.cli``."""

import sys

from inference.cli.app import main

sys.exit(main())

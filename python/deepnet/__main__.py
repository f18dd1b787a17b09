"""``python -m deepnet``: the same as the command ``deepnet``."""

import sys

from deepnet.cli import main

sys.exit(main())

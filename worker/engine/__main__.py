"""`python -m worker.engine scan|cleanse|evaluate|inspect`."""

import sys

from worker.engine.cli import main

sys.exit(main())

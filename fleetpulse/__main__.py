"""``python -m fleetpulse``."""

import sys

from fleetpulse.command import main

sys.exit(main())

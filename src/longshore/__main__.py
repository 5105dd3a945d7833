"""`python -m longshore`: the same as the `longshore` command."""

import sys

from longshore.cli.main import main

sys.exit(main())

"""python -m longshore.master.apiserver"""

from longshore.master.apiserver.command import main

raise SystemExit(main())

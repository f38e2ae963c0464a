"""``python -m swinopt`` is the ``swinopt`` command."""

from swinopt.cli import main

raise SystemExit(main())

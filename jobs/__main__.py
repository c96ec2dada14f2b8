"""`python -m jobs` is `nightjar`."""

from jobs.cli import main

main()

"""The compute side of one rank: page tables and caches, and the process that obeys the scheduler's plans."""

"""Set-up of a checkout: preflight, locks, steps. Standard library only, for it runs before anything is installed."""

"""Budgets and the scores they buy. Ground floor: torch and the standard library only."""

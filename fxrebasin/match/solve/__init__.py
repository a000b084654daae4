"""Solving: assignments, exact steps on nests of groups, where to start, and descents."""

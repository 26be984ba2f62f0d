"""CPU seconds of a benchmark."""

import resource


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))

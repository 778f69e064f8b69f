"""Numbers in words."""


def duration(seconds: float) -> str:
    """A duration in words, such as 0.08 s, 48 s, 3 min 15 s or 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s" if seconds >= 10 else f"{seconds:.2g} s"

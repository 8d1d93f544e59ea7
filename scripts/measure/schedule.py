"""Which parts run, in which order, and what is known of them already. No clock is read here."""
import fnmatch
import json


def chosen(parts, only, skip):
    """The parts whose name is like one of `only`, in its order (all, in theirs, without), less those like one of `skip`.

    Raises ValueError for a pattern that is like none.
    """
    names = [part.name for part in parts]
    for pattern in [*only, *skip]:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"{pattern!r} is like none of {', '.join(names)}")
    ordered = parts if not only else [part for pattern in only for part in parts if fnmatch.fnmatch(part.name, pattern)]
    once = list(dict.fromkeys(part.name for part in ordered))
    by_name = {part.name: part for part in parts}
    return [by_name[name] for name in once if not any(fnmatch.fnmatch(name, pattern) for pattern in skip)]


def time_for(part, left, pace):
    """Seconds that a part may take of those that are left; 0 where it is not expected to fit."""
    if left is None:
        return part.limit(pace)
    return 0 if left < part.seconds * pace else min(left, part.limit(pace))


class Results:
    """One line of JSON for each part that ran, appended when it ended; of a part that ran again the last one counts."""

    def __init__(self, file):
        self.file = file
        self.known = {}
        lines = file.read_text().splitlines() if file.exists() else []
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                # Whoever wrote it was ended meanwhile: the part has no result.
                continue

    def _take(self, result):
        self.known[result["part"]] = result

    def add(self, result):
        # A line that was cut short must not swallow this one.
        torn = self.file.exists() and not self.file.read_text().endswith("\n") and 0 < self.file.stat().st_size
        with self.file.open("a") as file:
            file.write("\n" * torn + json.dumps(result) + "\n")
        self._take(result)

    def is_done(self, part):
        """Whether it has a result; one that failed has none."""
        return self.known.get(part.name, {}).get("state") == "ok"

    def failed_last(self, parts):
        """The same parts: those that failed before must not take the time of those that never ran."""
        return sorted(parts, key=lambda part: part.name in self.known and not self.is_done(part))

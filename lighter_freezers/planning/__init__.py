"""Plans a run before its first step: its schedule is rehearsed on a copy, and each phase is measured."""

"""A run seen before its first step: its schedule is rehearsed on a copy, and each phase is measured."""

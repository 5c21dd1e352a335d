"""When something changes and what follows: rules, actions, triggers, ledger and the engine itself."""

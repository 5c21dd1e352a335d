"""Everything that runs an experiment: text, tasks, metrics, data modules, LightningModules."""

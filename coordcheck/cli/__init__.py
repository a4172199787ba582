"""The console commands, one a file. Only here is Hydra's merged configuration seen."""

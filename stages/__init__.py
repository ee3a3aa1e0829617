"""The commands: each is a subcommand of `pipeline` and a stage of dvc.yaml."""

"""The `forge` command. Loads only what the subcommand needs, and never Dagster."""

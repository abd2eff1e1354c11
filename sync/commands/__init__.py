"""The agent's and the centre's commands, each found by its entry point."""

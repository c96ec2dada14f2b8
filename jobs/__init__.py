"""How tables are made: the plan, the lake, the Spark steps, the simulated world, the command line."""

"""What a user of Predump touches: command line, scenario files, running them, results.

The command line does nothing that a program cannot: `predump.scenario.load_scenario` reads a
scenario, `predump.runner.run_scenario` runs it, `predump.result.Result` is what comes out.
"""

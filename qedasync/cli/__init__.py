"""The command line: ``main`` finds the verb, one module does each."""

"""One module per engine under test; `registry` maps a name to its adapter without importing it."""

"""The measuring instrument: arrivals, clock, open-loop driver. Knows no engine, no model and no dataset."""

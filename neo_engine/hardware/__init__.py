"""Hardware that need not be there: sheets, efficiency factors, and the cost tables that follow. Knows no torch."""

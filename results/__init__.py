"""What a run leaves behind: record schema, append-only run folders, metrics. Knows no engine and no workload."""

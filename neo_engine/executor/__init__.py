"""Executors carry out a StepPlan on real memory and compute."""

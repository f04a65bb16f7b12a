"""Policies: each turns the queues into the plan of the next iteration. One module a policy; none knows torch."""

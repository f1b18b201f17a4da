"""Benchmarks: CPU a query beside the floor in C, memory, latency. Load goes to loopback only, bounded in time and
count.
"""

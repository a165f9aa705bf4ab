"""Claims measured beside their rivals: ``python -m benchmarks``; see README.md in this folder."""

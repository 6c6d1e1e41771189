"""From a torch module to a `Program`: capture, rewrite, quantise, schedule. Imports nothing of ours."""

"""What a user touches: the design file, the command line, and how a model is compiled and run."""

"""One file a board, one `BOARD` a file."""

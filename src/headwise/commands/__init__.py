"""What is typed and what is answered: the command line, quoting, refusals."""

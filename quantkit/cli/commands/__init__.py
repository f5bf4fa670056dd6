"""One file per command, each with a function `command`; it parses options, calls the library and prints."""

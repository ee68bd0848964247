"""Files of each format as records: a line's or row's fields, or what is wrong with it."""

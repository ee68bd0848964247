"""Models that keep a recurrent state, alone or beside keys and values."""

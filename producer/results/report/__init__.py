"""`producer report`: a run, or two runs compared, as one offline page. Never writes to the database."""

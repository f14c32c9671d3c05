"""Files and batches: many requests in one file, each executed once, within hours instead of seconds.

A batch is a record in the state store with a lease. Whoever holds the lease executes lines and appends each result to a journal of its
own epoch; whoever comes after it reads all journals and goes on with the lines that are missing. The output has each line once.
"""

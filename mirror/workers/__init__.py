"""Several processes on one port and one folder.

One process owns the folder: store, index, upstreams, downloads, rate limits. Front processes take
the clients' connections. What a front has answered it answers again by itself; anything else it
asks the owner, over a Unix socket, and a blob's bytes it sends from the file that the owner names,
also while that still grows. So whatever is known or decided is known and decided once.
"""

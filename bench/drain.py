"""Reads a collection to its end and throws it away: what the server can send.

find_raw_batches -> nothing; the documents stay the bytes that came from the socket.

usage: drain.py URL DATABASE COLLECTION
"""

import sys

from pymongo import MongoClient

url, database, collection = sys.argv[1:]
batches = MongoClient(url)[database][collection].find_raw_batches(batch_size=20_000)
if sum(len(batch) for batch in batches) == 0:
    sys.exit(f"{database}.{collection} is empty")

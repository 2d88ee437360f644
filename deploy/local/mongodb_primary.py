"""Makes the mongod at HOST PORT the primary of a replica set of one. Exits 0 once it is, 1 while it is not yet.

Called again and again by mongodb.sh until it succeeds; changes nothing where the set is as it should be.
"""

import sys

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

NOT_YET_INITIALIZED = 94
INVALID_REPLICA_SET_CONFIG = 93


def main(name: str, host: str, port: int) -> int:
    client = MongoClient(host, port, directConnection=True, serverSelectionTimeoutMS=1000)
    admin = client.admin
    member = {"_id": 0, "host": f"{host}:{port}"}
    try:
        config = admin.command("replSetGetConfig")["config"]
        if config["members"][0]["host"] != member["host"]:
            # The data was made on another port: the member does not find itself in its set until that is put right.
            config["members"] = [config["members"][0] | member]
            config["version"] += 1
            admin.command("replSetReconfig", config, force=True)
    except OperationFailure as error:
        if error.code == INVALID_REPLICA_SET_CONFIG:
            return 1
        if error.code != NOT_YET_INITIALIZED:
            raise
        admin.command("replSetInitiate", {"_id": name, "members": [member]})
    return 0 if admin.command("hello").get("isWritablePrimary") else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except PyMongoError as error:
        sys.exit(f"mongodb: {error}")

"""Lakeward against the limits of the same machine, on the same rows, in the same run.

tpchgen-cli -> PostgreSQL, or documents -> MongoDB -> `lakeward run --until-caught-up` -> Iceberg, timed; beside it what the server's
own clients need to read the same rows and throw them away. Each run is a line of JSON in docs/bench/<date>-<entry>/runs.jsonl;
ratios go to stdout.

An entry whose lake does not hold exactly the source's rows fails: a fast wrong answer is no figure.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from bson import Int64, ObjectId
from pymongo import MongoClient

ROOT = Path(__file__).resolve().parent.parent
PG_BIN = Path("/usr/lib/postgresql/15/bin")
# Rows per CPU second of the peers that do the same job, Debezium and the Iceberg sink for Kafka Connect together, on a machine
# like ours: untuned and tuned.
PEERS = (16_000, 19_000)

LINEITEM = """
create table lineitem (
  l_orderkey bigint not null, l_partkey bigint not null, l_suppkey bigint not null, l_linenumber int not null,
  l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null,
  l_tax numeric(15,2) not null, l_returnflag char(1) not null, l_linestatus char(1) not null, l_shipdate date not null,
  l_commitdate date not null, l_receiptdate date not null, l_shipinstruct char(25) not null, l_shipmode char(10) not null,
  l_comment varchar(44) not null, primary key (l_orderkey, l_linenumber))
"""
# One row of source and lake alike: how many, and sums that see every row.
CHECKSUM = """
select count(*) as n, sum(l_orderkey) as orders, sum(l_linenumber) as lines, sum(l_quantity) as quantity,
       sum(l_extendedprice) as price, count(distinct l_comment) as comments, max(l_shipdate) as shipped
from {}
"""
CHANGES_PER_TRANSACTION = 10
# Alternating: an update of a row of the snapshot, spread over the table, and an insert; so many of each per transaction.
MAKE_CHANGES = """
do $$
begin
  for t in 0 .. {transactions} - 1 loop
    for i in 0 .. {pairs} - 1 loop
      update lineitem set l_quantity = l_quantity + 1, l_comment = 'changed ' || t
        where (l_orderkey, l_linenumber) = (select o, l from targets where n = t * {pairs} + i);
      insert into lineitem select 100000000 + t * {pairs} + i, 1, 2, 1, 3, 4.50, 0.05, 0.02, 'N', 'O', '1998-01-01', '1998-01-02',
        '1998-01-03', 'NONE', 'AIR', 'added by transaction ' || t;
    end loop;
    commit;
  end loop;
end $$
"""


# The same of documents: exact sums (prices are quarters), and the greatest key.
DOCUMENTS_CHECKSUM = """
select count(*) as n, sum(quantity) as quantity, sum(points) as points, sum(price) as price, count(distinct customer) as customers,
       count(placed_at) as placed, count(distinct address) as addresses, max(_id) as last
from {}
"""
CITIES = ("Oslo", "Lima", "Rome", "Quito", "Bergen", "Kyoto", "Perth")


def document(number):
    """An order, about 200 bytes of BSON."""
    return {
        "_id": ObjectId(), "customer": f"customer {number % 50_021}", "sku": f"SKU-{number * 7919 % 100_003:06}", "quantity": number % 50,
        "points": Int64(number * 1_000_003), "price": number % 40_000 / 4, "paid": number % 3 == 0,
        "placed_at": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=number),
        "address": {"city": CITIES[number % len(CITIES)], "street": "Long Street", "number": number % 300},
    }


def say(text=""):
    print(text, flush=True)


class Failed(Exception):
    """An entry that gives no figure; its text is for the reader."""


def timed(command, log=None):
    """Runs a command to its end: wall seconds, CPU seconds and peak memory of its process alone."""
    out = open(log, "a") if log else subprocess.DEVNULL
    started = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out if log else None)
    # Not wait(): only wait4 tells what the child used.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - started
    if process.returncode != 0:
        tail = "\n".join(Path(log).read_text().splitlines()[-15:]) if log else ""
        raise Failed(f"{command[0]} ended with {process.returncode}\n{tail}")
    return {"wall_s": round(wall, 3), "user_s": round(usage.ru_utime, 3), "sys_s": round(usage.ru_stime, 3),
            "peak_mib": round(usage.ru_maxrss / 1024, 1)}


def cpu(run):
    return run["user_s"] + run["sys_s"]


class Bench:
    """A source database, a lake, and the configuration of one Lakeward between them; gone when closed."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.binary = Path(arguments.binary).resolve()
        self.tag = uuid.uuid4().hex[:8]
        self.server = os.environ["LAKEWARD_TEST_POSTGRES"]
        self.source, self.lake = f"bench_source_{self.tag}", f"bench_lake_{self.tag}"
        self.dir = ROOT / ".stack" / "bench" / self.tag
        self.dir.mkdir(parents=True)
        self.log = self.dir / "lakeward.log"
        with psycopg.connect(self.server, autocommit=True) as admin:
            admin.execute(f"create database {self.lake}")
        self.create_source()
        self.configure()

    def url(self, database):
        return urlsplit(self.server)._replace(path=f"/{database}").geturl()

    def configure(self):
        (self.dir / "lakeward.toml").write_text(f"""
name = "bench_{self.tag}"
state_dir = "{self.dir}/state"
[[source]]
name = "bench_{self.tag}"
{self.source_settings()}
[log]
kind = "kafka"
brokers = "{os.environ["LAKEWARD_TEST_KAFKA"]}"
[catalog]
kind = "sql"
url = "{self.url(self.lake)}"
[warehouse]
url = "s3://lake/bench-{self.tag}"
endpoint = "{os.environ["LAKEWARD_TEST_S3"]}"
region = "us-east-1"
access_key_id = "lakeward"
secret_access_key = "lakeward-secret"
[query]
postgres = "127.0.0.1:0"
flight = "127.0.0.1:0"
http = "127.0.0.1:0"
[telemetry]
listen = "127.0.0.1:0"
""")

    def lakeward(self, *command):
        return [self.binary, "--config", self.dir / "lakeward.toml", *command]

    def catch_up(self):
        return timed(self.lakeward("run", "connectors", "sink", "--until-caught-up"), self.log)

    def in_lake(self, query):
        """The one row of an answer."""
        done = subprocess.run([str(p) for p in self.lakeward("sql", "--format", "json", "-c", query)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"lakeward sql ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def same(self, source, lake):
        """Source and lake hold the same; how many rows that is."""
        if source != lake:
            raise Failed(f"source and lake differ:\n  source {source}\n  lake   {lake}")
        if self.arguments.verify:
            self.verify()
        return int(source[0])

    def verify(self):
        """`lakeward verify`, which asks a running pipeline for a cut."""
        with open(self.log, "a") as log:
            running = subprocess.Popen([str(p) for p in self.lakeward("run", "connectors", "sink")], stdout=log, stderr=log)
        try:
            done = subprocess.run([str(p) for p in self.lakeward("verify")], capture_output=True, text=True)
        finally:
            running.terminate()
            running.wait()
        if done.returncode != 0:
            raise Failed(f"lakeward verify ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        say(f"  {done.stdout.strip().splitlines()[-1]}")

    def close(self):
        self.drop_source()
        with psycopg.connect(self.server, autocommit=True) as admin:
            admin.execute(f"drop database if exists {self.lake} with (force)")
        if not self.arguments.keep_state:
            shutil.rmtree(self.dir)


class PostgresBench(Bench):
    """The source is PostgreSQL."""

    def create_source(self):
        with psycopg.connect(self.server, autocommit=True) as admin:
            admin.execute(f"create database {self.source}")

    def source_settings(self):
        return f'kind = "postgres"\nurl = "{self.url(self.source)}"'

    def connect(self):
        return psycopg.connect(self.url(self.source), autocommit=True)

    def load(self, rows):
        """Fills lineitem with exactly so many rows of TPC-H."""
        generator = Path(sys.executable).parent / "tpchgen-cli"
        # Scale 1 has 6,001,215 rows; a little more than needed, the rest is not read.
        command = [generator, "csv", "-s", str(rows * 1.02 / 6_001_215), "--tables", "lineitem", "--stdout"]
        with self.connect() as db, subprocess.Popen(command, stdout=subprocess.PIPE) as csv:
            db.execute(LINEITEM)
            csv.stdout.readline()
            left = rows
            with db.cursor().copy("copy lineitem from stdin (format csv)") as copy:
                for line in csv.stdout:
                    if left == 0:
                        break
                    copy.write(line)
                    left -= 1
            csv.kill()
            if left:
                raise Failed(f"the generator made {rows - left} rows instead of {rows}")
            db.execute("vacuum analyze lineitem")
            db.execute("checkpoint")

    def compare(self):
        with self.connect() as db:
            source = [str(value) for value in db.execute(CHECKSUM.format("lineitem")).fetchone()]
        answer = self.in_lake(CHECKSUM.format(f"bench_{self.tag}.lineitem"))
        lake = [str(value) for value in json.loads(answer, parse_float=str, parse_int=str)[0].values()]
        return self.same(source, lake)

    def drop_source(self):
        with psycopg.connect(self.server, autocommit=True) as admin:
            slots = "select slot_name from pg_replication_slots where database = %s and not active"
            for (slot,) in admin.execute(slots, (self.source,)).fetchall():
                admin.execute("select pg_drop_replication_slot(%s)", (slot,))
            admin.execute(f"drop database if exists {self.source} with (force)")


class MongoBench(Bench):
    """The source is MongoDB."""

    def create_source(self):
        self.mongodb = os.environ["LAKEWARD_TEST_MONGODB"]
        self.client = MongoClient(self.mongodb)
        self.orders = self.client[self.source].orders

    def source_settings(self):
        url = urlsplit(self.mongodb)._replace(path=f"/{self.source}").geturl()
        return f'kind = "mongodb"\nurl = "{url}"\ninclude = ["{self.source}.*"]'

    def load(self, documents):
        """Fills orders; returns the bytes of a document."""
        for start in range(0, documents, 20_000):
            self.orders.insert_many([document(n) for n in range(start, min(start + 20_000, documents))])
        return self.client[self.source].command("collStats", "orders")["avgObjSize"]

    def compare(self):
        group = {"_id": None, "n": {"$sum": 1}, "last": {"$max": "$_id"}, "placed": {"$sum": {"$cond": ["$placed_at", 1, 0]}}}
        group |= {name: {"$sum": f"${name}"} for name in ("quantity", "points", "price")}
        group |= {name: {"$addToSet": f"${field}"} for name, field in (("customers", "customer"), ("addresses", "address"))}
        [found] = self.orders.aggregate([{"$group": group}])
        source = [found["n"], found["quantity"], found["points"], found["price"], len(found["customers"]), found["placed"],
                  len(found["addresses"]), str(found["last"])]
        answer = self.in_lake(DOCUMENTS_CHECKSUM.format(f"bench_{self.tag}.orders"))
        return self.same(source, list(json.loads(answer)[0].values()))

    def drop_source(self):
        self.client.drop_database(self.source)


class Alone:
    """An entry that needs no server."""

    def __init__(self, arguments):
        self.arguments = arguments

    def close(self):
        pass


def snapshot(bench):
    """A table to a committed Iceberg table, beside `COPY ... (FORMAT binary)` to nowhere."""
    rows = bench.arguments.rows
    bench.load(rows)
    copy = timed([PG_BIN / "psql", bench.url(bench.source), "-qXc", "copy lineitem to stdout (format binary)"])
    ours = bench.catch_up()
    held = bench.compare()
    if held != rows:
        raise Failed(f"{held} rows instead of {rows}")
    return {"rows": rows, "lakeward": ours, "limit": copy, "limit_is": "psql: COPY ... (FORMAT binary) to /dev/null"}


def changes(bench):
    """A backlog of small transactions to committed, beside `pg_recvlogical` draining a second slot of the same changes."""
    count = bench.arguments.changes
    if count % CHANGES_PER_TRANSACTION:
        raise Failed(f"--changes must be a multiple of {CHANGES_PER_TRANSACTION}")
    bench.load(bench.arguments.rows)
    before = bench.catch_up()
    pairs = CHANGES_PER_TRANSACTION // 2
    with bench.connect() as db:
        # The rows to update: each once, in an order that is not the table's.
        db.execute("create temporary table targets (n int primary key, o bigint, l int)")
        db.execute("insert into targets select row_number() over (order by md5(ctid::text)) - 1, l_orderkey, l_linenumber from lineitem"
                   " order by md5(ctid::text) limit %s", (count // 2,))
        have = db.execute("select count(*) from targets").fetchone()[0]
        if have != count // 2:
            raise Failed(f"{have} rows to update, {count // 2} wanted: more --rows are needed")
        publication = db.execute("select pubname from pg_publication").fetchone()[0]
        db.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (f"peer_{bench.tag}",))
        db.execute("set synchronous_commit = off")
        started = time.monotonic()
        db.execute(MAKE_CHANGES.format(transactions=count // CHANGES_PER_TRANSACTION, pairs=pairs))
        made = time.monotonic() - started
        end = db.execute("select pg_current_wal_flush_lsn()").fetchone()[0]
        db.execute("checkpoint")
    say(f"  {count:,} changes made in {made:.1f} s")
    drained = timed([PG_BIN / "pg_recvlogical", "-d", bench.url(bench.source), "--slot", f"peer_{bench.tag}", "--start", "-f", "/dev/null",
                     "-o", "proto_version=1", "-o", f"publication_names={publication}", "--endpos", end, "--no-loop"])
    ours = bench.catch_up()
    held = bench.compare()
    if held != bench.arguments.rows + count // 2:
        raise Failed(f"{held} rows instead of {bench.arguments.rows + count // 2}")
    return {"rows": count, "lakeward": ours, "limit": drained, "limit_is": "pg_recvlogical to /dev/null", "snapshot": before}


def mongo_snapshot(bench):
    """A collection to a committed Iceberg table, beside a raw cursor whose batches are not even looked at."""
    count = bench.arguments.documents
    say(f"  {count:,} documents of {bench.load(count)} bytes")
    drained = timed([sys.executable, ROOT / "bench" / "drain.py", bench.mongodb, bench.source, "orders"])
    ours = bench.catch_up()
    held = bench.compare()
    if held != count:
        raise Failed(f"{held} documents instead of {count}")
    return {"rows": count, "lakeward": ours, "limit": drained, "limit_is": "a raw cursor of pymongo, its batches thrown away"}


def codecs(bench):
    """Encoding and decoding by each codec, beside Arrow's own IPC on the same batches and arrow-json on the same text."""
    return cargo_bench(bench, "lakeward-event", "codecs")


def log(bench):
    """The same changes through Kafka and through the embedded log by each codec, beside librdkafka alone on records already encoded."""
    return cargo_bench(bench, "lakeward-log", "log")


def cargo_bench(bench, package, name):
    # The package alone: the rest of the workspace would be half an hour of building.
    command = ["cargo", "bench", "--quiet", "-p", package, "--bench", name, "--", "--changes", bench.arguments.codec_changes]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"cargo bench ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


ENTRIES = {"snapshot": (snapshot, PostgresBench), "changes": (changes, PostgresBench), "mongo-snapshot": (mongo_snapshot, MongoBench),
           "codecs": (codecs, Alone), "log": (log, Alone)}

# What is divided by what, and the goal: at most so many times the CPU of the stock part.
CODEC_RATIOS = [("arrow_encode", "ipc_encode", 1.5), ("arrow_decode", "ipc_decode", 1.5),
                ("json_encode", "arrow_json_encode", 0.5), ("json_decode", "arrow_json_decode", 1.0)]


def report_codecs(result):
    for name, of in result["results"].items():
        say(f"  {name:<18} {of['us_per_change']:7.3f} us of CPU per change  {of['bytes_per_change']:6.1f} bytes")
    for ours, stock, goal in CODEC_RATIOS:
        ratio = result["results"][ours]["us_per_change"] / result["results"][stock]["us_per_change"]
        say(f"  ratio      {ratio:8.2f} times the CPU of {stock} for {ours} (the goal is {goal})")


def report_log(result):
    of, changes = result["results"], result["changes"]
    for name, cost in of.items():
        say(f"  {name:<28} {changes / cost['wall_s']:10,.0f} changes/s  {cost['cpu_s'] * 1e6 / changes:6.3f} us of CPU per change"
            + (f"  {cost['appends']} transactions" if cost["appends"] else ""))
    for codec in sorted({name.split("_")[1] for name in of}):
        def ratio(ours, other, what):
            ours, other = of[ours.format(codec)], of[other.format(codec)]
            say(f"  ratio      {ours['wall_s'] / other['wall_s']:6.2f} times the wall time, {ours['cpu_s'] / max(other['cpu_s'], 0.01):6.2f} times the CPU: {codec}, {what}")
        ratio("kafka_{}_publish", "librdkafka_{}_produce", "encoding and appending against librdkafka's producer alone")
        ratio("kafka_{}_read", "librdkafka_{}_consume", "reading into batches against librdkafka's consumer alone")
        ratio("librdkafka_{}_transactions", "librdkafka_{}_produce", "transactions of 200 ms against none (the goal is 1.1)")
        ratio("embedded_{}_publish", "kafka_{}_publish", "the embedded log against Kafka, writing (the goal is 1)")
        ratio("embedded_{}_read", "kafka_{}_read", "the embedded log against Kafka, reading (the goal is 1)")


def purpose(entry):
    return ENTRIES[entry][0].__doc__.strip().splitlines()[0]


def report(entry, result):
    if entry == "codecs":
        return report_codecs(result)
    if entry == "log":
        return report_log(result)
    rows, ours, limit = result["rows"], result["lakeward"], result["limit"]
    per_second, per_cpu = rows / ours["wall_s"], rows / cpu(ours)
    say(f"  lakeward   {ours['wall_s']:8.2f} s  {per_second:10,.0f} rows/s  {per_cpu:10,.0f} rows per CPU second  peak {ours['peak_mib']:,.0f} MiB")
    say(f"  the limit  {limit['wall_s']:8.2f} s  {rows / limit['wall_s']:10,.0f} rows/s  {rows / cpu(limit):10,.0f} rows per CPU second"
        f"  ({result['limit_is']})")
    say(f"  ratio      {ours['wall_s'] / limit['wall_s']:8.2f} times the limit's wall time, {cpu(ours) / cpu(limit):.2f} times its CPU time")
    if entry == "snapshot":
        ratios = [per_cpu / peer for peer in PEERS]
        say(f"  peers      {ratios[1]:.2f} to {ratios[0]:.2f} times the rows per CPU second of Debezium with the Iceberg sink for Kafka Connect"
            f" ({PEERS[0]:,} to {PEERS[1]:,}; the goal is 4)")


def machine():
    model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    memory = int(next(l for l in open("/proc/meminfo") if l.startswith("MemTotal")).split()[1]) / 1024**2
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB of memory, Linux {platform.release()}"


def keep(entry, result):
    """Appends the run to the folder of the day, and says there what it was."""
    folder = ROOT / "docs" / "bench" / f"{datetime.date.today()}-{entry}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "runs.jsonl", "a") as runs:
        runs.write(json.dumps(result) + "\n")
    readme = folder / "README.md"
    if not readme.exists():
        readme.write_text(f"# {entry}\n\n{purpose(entry)}\n\n- Machine: {machine()}; servers and Lakeward on it together\n"
                          f"- Command: `make bench`, or `deploy/local/stack.sh run bench/run.sh {entry}`\n"
                          f"- Runs: [runs.jsonl](runs.jsonl), one line each; `load` is the machine's load average when a run began\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"{', '.join(ENTRIES)}; default: all")
    parser.add_argument("--binary", required=True, help="a release build of lakeward")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of lineitem (default: %(default)s)")
    parser.add_argument("--changes", type=int, default=500_000, help="changes of the backlog (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=500_000, help="documents of the collection (default: %(default)s)")
    parser.add_argument("--codec-changes", type=int, default=1_000_000, help="changes that codecs encode and decode (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="how often each entry is run (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="prove source = lake after each run, by `lakeward verify`")
    parser.add_argument("--keep-state", action="store_true", help="keep configuration and log of each run under .stack/bench")
    parser.add_argument("--no-record", action="store_true", help="do not write to docs/bench")
    arguments = parser.parse_args()
    unknown = [entry for entry in arguments.entries if entry not in ENTRIES]
    if unknown:
        parser.error(f"no entry {unknown[0]} ({', '.join(ENTRIES)})")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    status = 0
    for entry in arguments.entries or ENTRIES:
        for _ in range(arguments.runs):
            say(f"{entry}: {purpose(entry)}")
            load = os.getloadavg()[0]
            measure, kind = ENTRIES[entry]
            bench = kind(arguments)
            try:
                result = measure(bench)
                result |= {"at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit, "load": load}
                report(entry, result)
                if not arguments.no_record:
                    keep(entry, result)
            except Failed as error:
                say(f"  FAILED: {error}")
                status = 1
            finally:
                bench.close()
    sys.exit(status)


if __name__ == "__main__":
    main()

"""The main job, shown: two services' databases, one join across them, a crash, and the proof that nothing was lost.

demo_users (PostgreSQL: users, orders), demo_inventory (MongoDB: items, reservations) -> Lakeward -> Iceberg -> SQL

`demo.py BINARY embedded`: log, catalog and tables in a directory. `demo.py BINARY stack`: Kafka, PostgreSQL and MinIO.

Exit status 0 only if every step held; nothing is left running, and the databases and topics of the demo are dropped at the end.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pymongo
from confluent_kafka.admin import AdminClient

USERS, ITEMS, ORDERS = 10_000, 2_000, 50_000
CITIES = ["Lisbon", "Oslo", "Kyoto", "Quito", "Accra", "Perth"]
CATEGORIES = ["lamps", "chairs", "desks", "shelves", "rugs"]
JOIN = """
select i.category, count(distinct u.id) as buyers, count(*) as orders, sum(o.quantity * o.price) as revenue
from demo_users.orders o
join demo_users.users u on u.id = o.user_id
join demo_inventory.items i on i._id = o.item_id
group by i.category order by i.category
"""

STARTED = time.monotonic()


def say(text=""):
    print(f"[{time.monotonic() - STARTED:5.1f}s] {text}" if text else "", flush=True)


class Failed(Exception):
    """A step that did not hold; its text is for the reader."""


class Demo:
    def __init__(self, binary, form):
        self.binary = str(Path(binary).resolve())
        self.form = form
        self.tag = uuid.uuid4().hex[:8]
        self.pg_url = os.environ["LAKEWARD_TEST_POSTGRES"]
        self.mongo_url = os.environ["LAKEWARD_TEST_MONGODB"]
        self.dir = Path(".stack/demo").resolve()
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.pg_name, self.lake_name, self.mongo_name = (f"demo_{what}_{self.tag}" for what in ("users", "lake", "inventory"))
        self.daemon = None
        self.writing = threading.Event()
        self.writers = []
        self.changes = 0
        self.writer_error = None

    # ---- the two services

    def database_url(self, name):
        return urlsplit(self.pg_url)._replace(path=f"/{name}").geturl()

    def create_users_service(self):
        with psycopg.connect(self.pg_url, autocommit=True) as admin:
            admin.execute(f"create database {self.pg_name}")
            if self.form == "stack":
                admin.execute(f"create database {self.lake_name}")
        with psycopg.connect(self.database_url(self.pg_name)) as db:
            db.execute("""
                create table users (id bigint primary key, name text not null, city text, balance numeric(12,2) not null,
                                    created_at timestamptz not null default now());
                create table orders (id bigint primary key, user_id bigint not null, item_id text not null,
                                     quantity int not null, price numeric(10,2) not null, ordered_at timestamptz not null default now());
            """)
            with db.cursor().copy("copy users (id, name, city, balance) from stdin") as copy:
                for i in range(USERS):
                    copy.write_row((i, f"user {i}", random.choice(CITIES), random.randrange(100_000) / 100))
            with db.cursor().copy("copy orders (id, user_id, item_id, quantity, price) from stdin") as copy:
                for i in range(ORDERS):
                    copy.write_row(self.order(i))

    @staticmethod
    def order(i):
        return (i, random.randrange(USERS), f"item-{random.randrange(ITEMS)}", random.randint(1, 5), random.randrange(100, 99_900) / 100)

    def create_inventory_service(self):
        self.mongo = pymongo.MongoClient(self.mongo_url)
        db = self.mongo[self.mongo_name]
        db.items.insert_many(
            {"_id": f"item-{i}", "title": f"Item {i}", "category": CATEGORIES[i % len(CATEGORIES)], "stock": 1_000,
             "dimensions": {"w": i % 90, "h": i % 70}, "tags": ["new"] if i % 3 else []} for i in range(ITEMS))
        db.reservations.insert_many({"item": f"item-{i % ITEMS}", "until": time.time() + i} for i in range(1_000))

    def write(self, change):
        """Runs `change(n)` again and again until the demo ends."""
        try:
            n = 0
            while self.writing.is_set():
                change(n)
                n += 1
                self.changes += 1
                time.sleep(0.004)
        except Exception as error:  # shown and judged by the main thread
            self.writer_error = error
            self.writing.clear()

    def start_writers(self):
        pg = psycopg.connect(self.database_url(self.pg_name), autocommit=True)
        items = self.mongo[self.mongo_name].items
        reservations = self.mongo[self.mongo_name].reservations
        r = random.Random(7)

        def users_service(n):
            with pg.transaction():
                if n % 10 < 7:
                    pg.execute("insert into orders (id, user_id, item_id, quantity, price) values (%s,%s,%s,%s,%s)", self.order(ORDERS + n))
                    pg.execute("update users set balance = balance - 1 where id = %s", (r.randrange(USERS),))
                elif n % 10 < 9:
                    pg.execute("update orders set quantity = quantity + 1 where id = %s", (r.randrange(ORDERS),))
                else:
                    pg.execute("delete from orders where id = %s", (r.randrange(ORDERS),))

        def inventory_service(n):
            item = f"item-{r.randrange(ITEMS)}"
            if n % 3 == 0:
                items.update_one({"_id": item}, {"$inc": {"stock": -1}, "$set": {"dimensions.w": n % 90}})
            elif n % 3 == 1:
                reservations.insert_one({"item": item, "until": time.time(), "note": f"n{n}"})
            else:
                reservations.delete_one({"item": item})

        self.writing.set()
        self.writers = [threading.Thread(target=self.write, args=(change,), daemon=True) for change in (users_service, inventory_service)]
        for writer in self.writers:
            writer.start()

    # ---- Lakeward

    def configure(self):
        mongo = urlsplit(self.mongo_url)
        text = f'''
name = "demo_{self.tag}"
state_dir = "{self.dir}/state"

[[source]]
name = "demo_users"
kind = "postgres"
url = "{self.database_url(self.pg_name)}"

[[source]]
name = "demo_inventory"
kind = "mongodb"
url = "mongodb://{mongo.netloc}/{self.mongo_name}?{mongo.query}"
include = ["{self.mongo_name}.*"]
'''
        # Without these sections all three are in state_dir.
        if self.form == "stack":
            text += f'''
[log]
kind = "kafka"
brokers = "{os.environ["LAKEWARD_TEST_KAFKA"]}"

[catalog]
kind = "sql"
url = "{self.database_url(self.lake_name)}"

[warehouse]
url = "s3://lake/demo-{self.tag}"
endpoint = "{os.environ["LAKEWARD_TEST_S3"]}"
region = "us-east-1"
access_key_id = "lakeward"
secret_access_key = "lakeward-secret"
'''
        (self.dir / "lakeward.toml").write_text(text)

    def lakeward(self, *arguments, check=True, timeout=300):
        done = subprocess.run([self.binary, "--config", str(self.dir / "lakeward.toml"), *arguments],
                              capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise Failed(f"`lakeward {' '.join(arguments)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def start(self):
        log = open(self.dir / "lakeward.log", "a")
        self.daemon = subprocess.Popen([self.binary, "--config", str(self.dir / "lakeward.toml"), "run"], stdout=log, stderr=log)

    def answer(self):
        """The join's rows, or None while the tables are still in their first snapshot."""
        if self.writer_error:
            raise Failed(f"the writer stopped: {self.writer_error}")
        if self.daemon.poll() is not None:
            tail = "\n".join((self.dir / "lakeward.log").read_text().splitlines()[-15:])
            raise Failed(f"lakeward ended with {self.daemon.returncode}:\n{tail}")
        done = self.lakeward("sql", "--format", "json", "-c", JOIN, check=False)
        if done.returncode != 0:
            return None
        moment = next((line for line in done.stderr.splitlines() if "as of" in line), "")
        return json.loads(done.stdout), moment

    def wait_for_answer(self, what, seconds, accept=lambda rows: bool(rows)):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.answer()
            if found and accept(found[0]):
                return found
            time.sleep(0.5)
        raise Failed(f"{what}: no answer within {seconds} s; see {self.dir}/lakeward.log")

    def show(self, found):
        rows, moment = found
        say(f"users who bought inventory, {moment.lstrip('- ')}")
        print(f"    {'category':<10}{'buyers':>8}{'orders':>8}{'revenue':>16}")
        for row in rows:
            print(f"    {row['category']:<10}{row['buyers']:>8}{row['orders']:>8}{row['revenue']:>16}")
        return sum(row["orders"] for row in rows)

    # ---- the story

    def run(self):
        say(f"users service: PostgreSQL, {USERS:,} users and {ORDERS:,} orders")
        self.create_users_service()
        say(f"inventory service: MongoDB, {ITEMS:,} items and 1,000 reservations")
        self.create_inventory_service()
        self.configure()
        self.delete_topics()
        log = "Kafka, catalog in PostgreSQL, tables on MinIO" if self.form == "stack" else f"a file, like catalog and tables, in {self.dir}/state"
        say(f"the log is {log}")
        say("lakeward check")
        print("    " + self.lakeward("check").stdout.strip().replace("\n", "\n    "))
        say("lakeward run, while writers keep changing both services")
        self.start_writers()
        self.start()
        total = self.show(self.wait_for_answer("the first answer", 120))
        for _ in range(3):
            time.sleep(5)
            now = self.show(self.wait_for_answer("the next answer", 60, lambda rows: sum(r["orders"] for r in rows) > total))
            total = now
        say(f"kill -9 under load ({self.changes:,} changes so far), and start again")
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()
        time.sleep(2)
        self.start()
        self.show(self.wait_for_answer("the answer after the crash", 60, lambda rows: sum(r["orders"] for r in rows) > total))
        say("lakeward verify: every row and value of every table, under load")
        done = self.lakeward("verify", check=False)
        print("    " + (done.stdout.strip() or done.stderr.strip()).replace("\n", "\n    "))
        if done.returncode != 0:
            raise Failed(f"verify ended with {done.returncode}: {done.stderr.strip()}")
        say(f"no difference after {self.changes:,} changes and a kill -9")

    def delete_topics(self):
        """Those of our sources, also of a demo that was killed: a source that has a log goes on with it."""
        if self.form != "stack":
            return
        admin = AdminClient({"bootstrap.servers": os.environ["LAKEWARD_TEST_KAFKA"]})

        def ours():
            return [topic for topic in admin.list_topics(timeout=30).topics if topic.startswith(("demo_users.", "demo_inventory."))]

        topics = ours()
        for deleted in (admin.delete_topics(topics, operation_timeout=30) if topics else {}).values():
            deleted.result()
        deadline = time.monotonic() + 30
        while ours():
            if time.monotonic() > deadline:
                raise Failed(f"Kafka does not delete {', '.join(ours())}")
            time.sleep(0.1)

    def clean_up(self):
        self.writing.clear()
        for writer in self.writers:
            writer.join(timeout=10)
        if self.daemon and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                say("lakeward did not stop within 60 s of SIGTERM")
                raise
        with psycopg.connect(self.pg_url, autocommit=True) as admin:
            slots = admin.execute("select slot_name from pg_replication_slots where database = %s and not active", (self.pg_name,)).fetchall()
            for (slot,) in slots:
                admin.execute("select pg_drop_replication_slot(%s)", (slot,))
            for name in (self.pg_name, self.lake_name):
                admin.execute(f"drop database if exists {name} with (force)")
        pymongo.MongoClient(self.mongo_url).drop_database(self.mongo_name)
        self.delete_topics()


def main():
    binary, form = sys.argv[1:]
    if form not in ("embedded", "stack"):
        sys.exit(f"{form}: embedded or stack")
    demo = Demo(binary, form)
    status = 0
    try:
        demo.run()
    except Failed as error:
        say(f"FAILED: {error}")
        status = 1
    except KeyboardInterrupt:
        status = 130
    finally:
        try:
            demo.clean_up()
        except Exception as error:
            say(f"FAILED to clean up: {error}")
            status = status or 1
    if status == 0:
        say("done")
    sys.exit(status)


if __name__ == "__main__":
    main()

"""Reads a stream's lake without any of caudal's code and says everything that is wrong with it.

    oracle.py LAKE_DIR [schema.table=export.csv]...

Checks the commit log (epochs, positions, generations, files), folds each table's
change files by `_seq` and compares the rows with the source's export. Both sides are
put into one canonical text: decimals exactly, floats as the shortest text of the
double, binary in hex, dates as days, times and timestamps as microseconds. Prints one
JSON document; `problems` is empty if all is well.
"""

import hashlib
import json
import os
import re
import sys

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

SHOWN = 20  # differences told per table
META = ["_op", "_seq", "_committed_at", "_position", "_unchanged"]
FILE_NAME = re.compile(r"^(\d{20})-(\d{4,})-(\d{2,})\.parquet$")
PARTITION = re.compile(r"^_date=\d{4}-\d\d-\d\d(/_hour=\d\d)?$")

problems = []


def problem(text):
    problems.append(text)


def quote(name):
    return '"' + name.replace('"', '""') + '"'


def cid(column):
    return f"c{column['id']}"


def one(database, sql):
    """A query's only value; all of its result is fetched, so that the connection is free again."""
    return database.execute(sql).fetchall()[0][0]


def short(value):
    if value is None:
        return "NULL"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}… ({len(value)} long)"


def arrow_type(lake_type):
    """The Arrow type that a file must have for a lake type."""
    plain = {
        "boolean": pa.bool_(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(),
        "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(),
        "string": pa.string(), "binary": pa.binary(), "date": pa.date32(),
        "time": pa.time64("us"), "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", tz="UTC"),
    }
    if lake_type in plain:
        return plain[lake_type]
    decimal = re.match(r"decimal\((\d+),(\d+)\)$", lake_type)
    if decimal:
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    if lake_type.startswith("list<"):
        return pa.list_(arrow_type(lake_type[5:-1]))
    if lake_type == "map<string,string>":
        return pa.map_(pa.string(), pa.string())
    raise ValueError(f"unknown lake type {lake_type}")


def same_type(found, wanted):
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_large_string(found):
        found = pa.string()
    if pa.types.is_large_binary(found):
        found = pa.binary()
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return same_type(found.value_type, wanted.value_type)
    if pa.types.is_map(found) and pa.types.is_map(wanted):
        return True
    return found.equals(wanted)


def storable(array, lake_type):
    """A column as DuckDB takes it without loss: dates and times as their numbers."""
    if lake_type == "date":
        return array.cast(pa.int32())
    if lake_type in ("time", "timestamp", "timestamptz"):
        return array.cast(pa.int64())
    if lake_type in ("float32", "float64"):
        return array.cast(pa.float64())
    if lake_type == "string":
        return array.cast(pa.large_string())
    if lake_type == "binary":
        return array.cast(pa.large_binary())
    return array.cast(arrow_type(lake_type))


def constant(default, lake_type, count):
    """The constant of an added column, in every row that is older than it."""
    if lake_type == "binary":
        return pa.array([bytes.fromhex(default)] * count, pa.binary())
    if isinstance(default, bool) or lake_type == "boolean":
        return pa.array([default in (True, "true", 1)] * count, pa.bool_())
    if lake_type in ("date", "timestamp", "timestamptz"):
        kind = pa.date32() if lake_type == "date" else pa.timestamp("us")
        return storable(pa.array([str(default).removesuffix("+00")] * count, pa.string()).cast(kind), lake_type)
    if lake_type == "time":
        return pa.array([str(default)] * count, pa.string()).cast(pa.time64("us")).cast(pa.int64())
    return pa.array([str(default)] * count, pa.string())


def canonical(column, lake_type):
    """SQL that prints a stored column canonically."""
    if lake_type == "binary":
        return f"lower(hex({column}))"
    return f"cast({column} as varchar)"


def canonical_source(column, lake_type):
    """SQL that brings an exported text to the same form."""
    if lake_type in ("float32", "float64"):
        return f"cast(cast({column} as double) as varchar)"
    if lake_type.startswith("decimal("):
        return f"cast(cast({column} as {lake_type}) as varchar)"
    return column


class Lake:
    def __init__(self, root):
        self.root = root
        self.entries = []
        self.files = {}  # table -> [(entry, file)]
        self.seen_tables = {}
        self.removed = set()  # by rewinds: in the store until a sweep
        self.read_log()

    def path(self, relative):
        return os.path.join(self.root, *relative.split("/"))

    def read_log(self):
        directory = os.path.join(self.root, "_log")
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        if not names:
            problem("the lake has no commit log")
        previous = None
        paths = set()
        for name in names:
            if not re.match(r"^\d{20}\.json$", name):
                problem(f"_log/{name} is not named as an epoch")
                continue
            with open(os.path.join(directory, name), "rb") as file:
                entry = json.load(file)
            at = f"epoch {entry['epoch']}"
            if entry["format"] != 1:
                problem(f"{at}: format {entry['format']}")
            if entry["epoch"] != int(name[:20]):
                problem(f"_log/{name} says that it is {at}")
            if entry["epoch"] != (previous["epoch"] + 1 if previous else 1):
                problem(f"{at} follows epoch {previous and previous['epoch']}: a gap")
            self.check_chain(at, previous, entry)
            for table in entry["tables"]:
                self.add_table(at, entry, table, paths)
            if entry["kind"] == "rewind":
                self.rewind(at, entry)
            self.entries.append(entry)
            previous = entry

    @staticmethod
    def check_chain(at, previous, entry):
        after, through, kind = entry["after"], entry["through"], entry["kind"]
        if kind not in ("append", "merge", "fence", "rewind"):
            problem(f"{at}: unknown kind {kind}")
        if previous and after != previous["through"]:
            problem(f"{at} begins after {after}, but the one before reaches {previous['through']}")
        if kind in ("merge", "fence") and after != through:
            problem(f"{at}, a {kind}, moves from {after} to {through}")
        if kind == "append" and through["seq"] < after["seq"]:
            problem(f"{at}: _seq goes back from {after['seq']} to {through['seq']}")
        generation = previous["generation"] if previous else 0
        if kind == "rewind" and through["seq"] > after["seq"]:
            problem(f"{at}, a rewind, goes forward from {after} to {through}")
        wanted = generation + 1 if kind in ("fence", "rewind") else generation
        if previous and entry["generation"] != wanted:
            problem(f"{at}, a {kind}, has generation {entry['generation']} after {generation}")
        if entry["generation"] < 1:
            problem(f"{at} has generation {entry['generation']}")

    def rewind(self, at, entry):
        """Takes the files of dropped commits away, which must be just those that it names."""
        to = entry["rewind_to"]
        target = next((e for e in self.entries if e["epoch"] == to), None)
        if target is None or target["through"] != entry["through"]:
            problem(f"{at} goes back to epoch {to}, which is not {entry['through']}")
        state = {t["table"]: t for t in entry["state"]}
        removed = {path for t in entry["tables"] for path in t.get("removed", [])}
        dropped = {f["path"] for files in self.files.values() for e, f in files if e["epoch"] > to}
        for path in sorted(removed ^ dropped)[:SHOWN]:
            problem(f"{at}: {path} is {'removed and older' if path in removed else 'dropped and not named'}")
        self.removed |= removed
        for name, files in self.files.items():
            self.files[name] = [(e, f) for e, f in files if f["path"] not in removed]
        for name, seen in self.seen_tables.items():
            then = state.get(name)
            seen["live"] = seen["done"] = bool(then) and then["state"] == "live"
            seen["bases"] = {b for e, b in seen["based"] if e <= to}
            seen["based"] = [(e, b) for e, b in seen["based"] if e <= to]
            if then:
                seen["version"] = then["schema_version"]

    def add_table(self, at, entry, table, paths):
        name = table["table"]
        seen = self.seen_tables.setdefault(
            name, {"done": False, "live": False, "bases": set(), "based": [], "version": None})
        if entry["kind"] != "rewind":
            seen["version"] = table["schema_version"]
        snapshot = table.get("snapshot")
        if snapshot:
            seen["done"] = snapshot["done"]
            seen["live"] = seen["live"] or snapshot.get("live", False)
            if "base_seq" in snapshot:
                seen["bases"].add(snapshot["base_seq"])
                seen["based"].append((entry["epoch"], snapshot["base_seq"]))
        for file in table.get("files", []):
            path = file["path"]
            if path in paths:
                problem(f"{at} names {path} again")
            paths.add(path)
            head, _, rest = path.partition("/changes/")
            partition, _, base = rest.rpartition("/")
            match = FILE_NAME.match(base)
            if not match or not PARTITION.match(partition):
                problem(f"{at}: {path} is not named as the layout says")
            elif int(match[1]) > entry["epoch"] or int(match[2]) != entry["generation"]:
                problem(f"{at}, generation {entry['generation']}, names {path}")
            seen["head"] = head
            self.files.setdefault(name, []).append((entry, file))

    def unreferenced(self):
        named = {f["path"] for files in self.files.values() for _, f in files} | self.removed
        found = []
        for directory, _, names in os.walk(self.root):
            relative = os.path.relpath(directory, self.root).replace(os.sep, "/")
            if "/changes" in relative or relative.endswith("changes"):
                found += [f"{relative}/{n}" for n in names if f"{relative}/{n}" not in named]
        return sorted(found)

    def schemas(self, name):
        head = self.seen_tables.get(name, {}).get("head")
        if head is None:
            head = "/".join(part.strip('"') for part in name.split(".", 1))
        directory = os.path.join(self.path(head), "_schema")
        versions = []
        for file in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
            with open(os.path.join(directory, file), "rb") as handle:
                schema = json.load(handle)
            if file != f"{schema['version']:06}.json" or schema["table"] != name:
                problem(f"{name}: {file} says that it is version {schema['version']} of {schema['table']}")
            versions.append(schema)
        for number, schema in enumerate(versions, 1):
            if schema["version"] != number:
                problem(f"{name}: schema version {schema['version']} stands at place {number}")
        if not versions:
            problem(f"{name}: there is no _schema file")
        return versions


class Table:
    """One table's change files in DuckDB, columns named c<id>."""

    def __init__(self, lake, name, database):
        self.name = name
        self.database = database
        self.versions = lake.schemas(name)
        self.report = {"ops": {}, "rows": 0, "files": 0, "schema_version": len(self.versions),
                       "snapshot_done": lake.seen_tables.get(name, {}).get("done", False),
                       "live": lake.seen_tables.get(name, {}).get("live", False), "columns": {}}
        self.sequences = []
        if not self.versions:
            return
        # After a rewind there may be versions of commits that it dropped.
        committed = lake.seen_tables.get(name, {}).get("version")
        self.newest = next((v for v in self.versions if v["version"] == committed), self.versions[-1])
        self.columns = self.newest["columns"]
        self.report["columns"] = {c["name"]: c["lake_type"] for c in self.columns}
        ids = {c["name"]: c["id"] for c in self.columns}
        self.key = [f"c{ids[k]}" for k in self.newest["key"]]
        self.bases = lake.seen_tables.get(name, {}).get("bases", set())
        parts = [self.read(lake, entry, file) for entry, file in lake.files.get(name, [])]
        parts = [p for p in parts if p is not None]
        self.load(parts)

    def version_of(self, columns, types, last_seq):
        """`columns` are the file's names and field ids; a copy's file may be of a version that
        began after the copy's own `_seq`."""
        fitting = [v for v in self.versions
                   if {(c["name"], c["id"]) for c in v["columns"]} == columns]
        typed = [v for v in fitting
                 if all(same_type(types[c["name"]], arrow_type(c["lake_type"])) for c in v["columns"])]
        fitting = typed or fitting
        current = [v for v in fitting if v["since_seq"] <= last_seq]
        return (current or fitting or [None])[-1]

    def read(self, lake, entry, file):
        where = f"{self.name}: {file['path']} of epoch {entry['epoch']}"
        try:
            with open(lake.path(file["path"]), "rb") as handle:
                content = handle.read()
        except FileNotFoundError:
            problem(f"{where} does not exist")
            return None
        if len(content) != file["bytes"]:
            problem(f"{where} has {len(content)} bytes, not {file['bytes']}")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            problem(f"{where} has another SHA-256")
        reader = pq.ParquetFile(pa.BufferReader(content))
        found = reader.read()
        if found.num_rows != file["rows"]:
            problem(f"{where} has {found.num_rows} rows, not {file['rows']}")
        names = set(found.column_names)
        for meta in META:
            if meta not in names:
                problem(f"{where} lacks {meta}")
                return None
        given = {f.name: int((f.metadata or {}).get(b"PARQUET:field_id", b"-1"))
                 for f in found.schema if f.name not in META}
        types = {f.name: f.type for f in found.schema}
        version = self.version_of(set(given.items()), types, file["last_seq"])
        if version is None:
            problem(f"{where} has columns of no schema version: {sorted(given.items())}")
            return None
        self.check_types(where, reader, found, version)
        self.check_seq(where, entry, file, found)
        self.report["files"] += 1
        by_id = {c["id"]: c for c in version["columns"]}
        arrays = {}
        for column in self.columns:
            old = by_id.get(column["id"])
            if old is not None:
                array = found[old["name"]]
                if old["lake_type"] == "float32" and column["lake_type"] == "float64":
                    array = array.cast(pa.float64())
                array = storable(array, column["lake_type"])
            else:
                wanted = storable(pa.array([], arrow_type(column["lake_type"])), column["lake_type"]).type
                default = column.get("default")
                array = pa.nulls(found.num_rows, wanted)
                if default is not None:
                    array = constant(default, column["lake_type"], found.num_rows).cast(wanted)
            arrays[f"c{column['id']}"] = array
        arrays["_op"] = found["_op"].cast(pa.string())
        arrays["_seq"] = found["_seq"]
        unchanged = found["_unchanged"]
        name_ids = {c["name"]: f"c{c['id']}" for c in version["columns"]}
        if unchanged.null_count < len(unchanged):
            lists = [None if not u else [name_ids[n] for n in u] for u in unchanged.to_pylist()]
            unchanged = pa.array(lists, pa.list_(pa.string()))
        else:
            unchanged = pa.nulls(found.num_rows, pa.list_(pa.string()))
        arrays["_unchanged"] = unchanged
        return pa.table(arrays)

    @staticmethod
    def check_types(where, reader, found, version):
        wanted = {c["name"]: arrow_type(c["lake_type"]) for c in version["columns"]}
        wanted |= {"_op": pa.string(), "_seq": pa.int64(), "_position": pa.string(),
                   "_committed_at": pa.timestamp("us", tz="UTC"),
                   "_unchanged": pa.list_(pa.string())}
        ids = {c["name"]: c["id"] for c in version["columns"]}
        for field in found.schema:
            if not same_type(field.type, wanted[field.name]):
                problem(f"{where}: {field.name} is {field.type}, not {wanted[field.name]}")
            given = (field.metadata or {}).get(b"PARQUET:field_id")
            if field.name in ids and given is not None and int(given) != ids[field.name]:
                problem(f"{where}: {field.name} has field id {given}, not {ids[field.name]}")
        for meta in ("_op", "_seq", "_committed_at", "_position"):
            if found[meta].null_count:
                problem(f"{where}: {meta} has nulls")

    def check_seq(self, where, entry, file, found):
        seq = found["_seq"].to_numpy()
        op = found["_op"].cast(pa.string()).to_numpy(zero_copy_only=False)
        if len(seq) and (seq.min() != file["first_seq"] or seq.max() != file["last_seq"]):
            problem(f"{where} holds _seq {seq.min()}…{seq.max()}, not {file['first_seq']}…{file['last_seq']}")
        change = (op != "r") & (op != "t")
        after, through = entry["after"]["seq"], entry["through"]["seq"]
        outside = change & ((seq <= after) | (seq > through))
        if outside.any():
            problem(f"{where}: {outside.sum()} changes outside _seq {after}…{through}")
        if self.bases:
            strange = set(seq[op == "r"].tolist()) - self.bases
            if strange:
                problem(f"{where}: snapshot rows with _seq {sorted(strange)[:3]}, not a copy's base")
        if (seq > through).any():
            problem(f"{where}: _seq beyond {through}")
        self.sequences.append(seq[change])
        for code in ("r", "c", "u", "d", "t"):
            count = int((op == code).sum())
            self.report["ops"][code] = self.report["ops"].get(code, 0) + count
        if len(op) != sum(int((op == c).sum()) for c in "rcudt"):
            problem(f"{where}: unknown _op {set(op) - set('rcudt')}")

    def load(self, parts):
        db = self.database
        if not parts:
            wanted = {f"c{c['id']}": storable(pa.array([], arrow_type(c["lake_type"])), c["lake_type"])
                      for c in self.columns}
            parts = [pa.table(wanted | {"_op": pa.array([], pa.string()), "_seq": pa.array([], pa.int64()),
                                        "_unchanged": pa.array([], pa.list_(pa.string()))})]
        whole = pa.concat_tables(parts)
        db.register("whole", whole)
        cells = ", ".join(f"{canonical(cid(c), c['lake_type'])} as {cid(c)}" for c in self.columns)
        db.execute(f"create or replace table changes as select {cells}, _op, _seq, _unchanged from whole").fetchall()
        db.unregister("whole")
        # A truncation removes what is before it; at its own _seq stand only the rows of a new copy.
        db.execute("""create or replace view live as select * from changes where _op <> 't'
                      and _seq >= coalesce((select max(_seq) from changes where _op = 't'), -1)""")
        if self.key:
            self.fold_keyed()
        else:
            self.fold_multiset()

    def fold_keyed(self):
        db, keys = self.database, ", ".join(self.key)
        twice = db.execute(f"""select {keys}, _seq, count(*) from live group by all
                               having count(*) > 1 limit {SHOWN}""").fetchall()
        for row in twice:
            problem(f"{self.name} key {row[:-2]}: {row[-1]} rows with _seq {row[-2]}")
        nameless = " or ".join(f"{k} is null" for k in self.key)
        if one(db, f"select count(*) from live where {nameless}"):
            problem(f"{self.name}: rows without a key")
        db.execute(f"""create or replace table folded as select * from live
                       qualify row_number() over (partition by {keys} order by _seq desc) = 1""")
        db.execute("delete from folded where _op = 'd'")
        if one(db, "select count(*) from folded where _unchanged is not null"):
            self.fill()
        self.report["rows"] = one(db, "select count(*) from folded")

    def fill(self):
        """Puts the older values into cells that the source did not send again."""
        db = self.database
        names = [f"c{c['id']}" for c in self.columns]
        rows = db.execute(f"select {', '.join(names)}, _op, _seq, _unchanged from live order by _seq").fetchall()
        history, removed = {}, {}
        for row in rows:
            cells = dict(zip(names, row))
            key = tuple(cells[k] for k in self.key)
            history.setdefault(key, []).append((row[-2], row[-3], row[-1] or [], cells))
            if row[-3] == "d":
                removed[row[-2]] = key

        def value(key, before, column):
            while True:
                older = [h for h in history.get(key, []) if h[0] < before]
                if not older or older[-1][1] == "d":
                    problem(f"{self.name} key {key}: {column} is unchanged, but there is no row before _seq {before}")
                    return None
                seq, op, unchanged, cells = older[-1]
                if column not in unchanged:
                    return cells[column]
                key, before = predecessor(key, seq, op)

        def predecessor(key, seq, op):
            # A changed key: the row that the delete just before removed.
            return (removed.get(seq - 1, key), seq - 1) if op == "c" else (key, seq)

        open_rows = db.execute(f"""select {', '.join(self.key)}, _op, _seq, _unchanged from folded
                                   where _unchanged is not null""").fetchall()
        for row in open_rows:
            key, (op, seq, unchanged) = tuple(row[:-3]), row[-3:]
            where = " and ".join(f"{k} = ?" for k in self.key)
            old_key, before = predecessor(key, seq, op)
            for column in unchanged:
                db.execute(f"update folded set {column} = ? where {where}",
                           [value(old_key, before, column), *key])

    def fold_multiset(self):
        db = self.database
        names = ", ".join(f"c{c['id']}" for c in self.columns)
        odd = one(db, "select count(*) from live where _op = 'u' or _unchanged is not null")
        if odd:
            problem(f"{self.name} has no key, but {odd} updates or unchanged cells")
        db.execute(f"""create or replace table folded as select {names},
                       sum(case when _op = 'd' then -1 else 1 end) as copies from live group by {names}""")
        below = one(db, "select count(*) from folded where copies < 0")
        if below:
            problem(f"{self.name}: {below} rows deleted more often than inserted")
        self.report["rows"] = int(one(db, "select coalesce(sum(copies), 0) from folded"))

    def compare(self, export):
        db = self.database
        with open(export, "rb") as file:
            header = pa.csv.read_csv(
                pa.BufferReader(file.readline()),
                read_options=pa.csv.ReadOptions(autogenerate_column_names=True)).to_pylist()[0]
        names = [str(header[f"f{i}"]) for i in range(len(header))]
        by_name = {c["name"]: c for c in self.columns}
        if set(names) != set(by_name):
            problem(f"{self.name}: source has columns {sorted(names)}, lake {sorted(by_name)}")
            return
        source = pa.csv.read_csv(
            export,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=1, block_size=64 << 20),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(
                column_types={n: pa.string() for n in names}, null_values=[""],
                strings_can_be_null=True, quoted_strings_can_be_null=False))
        db.register("export", source)
        cells = ", ".join(
            f"{canonical_source(quote(n), by_name[n]['lake_type'])} as c{by_name[n]['id']}" for n in names)
        db.execute(f"create or replace table source as select {cells} from export").fetchall()
        db.unregister("export")
        (self.compare_keyed if self.key else self.compare_multiset)()

    def compare_keyed(self):
        db = self.database
        rest = [c for c in self.columns if f"c{c['id']}" not in self.key]
        join = " and ".join(f"s.{k} = l.{k}" for k in self.key)
        differs = "".join(f" or s.c{c['id']} is distinct from l.c{c['id']}" for c in rest)
        first = self.key[0]
        db.execute(f"""create or replace temp view differences as
            select {', '.join(f'coalesce(s.{k}, l.{k}) as {k}' for k in self.key)},
                   s.{first} is null as not_in_source, l.{first} is null as not_in_lake, l._op, l._seq
                   {''.join(f", s.c{c['id']} as s{c['id']}, l.c{c['id']} as l{c['id']}" for c in rest)}
            from source s full join folded l on {join}
            where s.{first} is null or l.{first} is null{differs}""")
        count = one(db, "select count(*) from differences")
        if not count:
            return
        total = one(db, "select count(*) from source")
        problem(f"{self.name}: {count} of {total} rows at the source differ ({self.report['rows']} in the lake)")
        width = len(self.key)
        for row in db.execute(f"select * from differences order by all limit {SHOWN}").fetchall():
            key = ", ".join(short(v) for v in row[:width])
            absent_source, absent_lake, op, seq = row[width:width + 4]
            if absent_lake:
                problem(f"{self.name} key ({key}): only at the source")
            elif absent_source:
                problem(f"{self.name} key ({key}): only in the lake (_op {op}, _seq {seq})")
            else:
                pairs = zip(row[width + 4::2], row[width + 5::2])
                for column, (left, right) in zip(rest, pairs):
                    if left != right:
                        problem(f"{self.name} key ({key}) column {column['name']} (_op {op}, _seq {seq}): "
                                f"source {short(left)}, lake {short(right)}")

    def compare_multiset(self):
        db = self.database
        names = ", ".join(f"c{c['id']}" for c in self.columns)
        rows = db.execute(f"""
            select {names}, sum(n) as more from (
                select {names}, 1 as n from source union all select {names}, -copies as n from folded)
            group by {names} having sum(n) <> 0 order by all limit {SHOWN}""").fetchall()
        for row in rows:
            side = "at the source" if row[-1] > 0 else "in the lake"
            problem(f"{self.name} row ({', '.join(short(v) for v in row[:-1])}): {abs(row[-1])} more {side}")


def main():
    lake = Lake(sys.argv[1])
    exports = dict(argument.rsplit("=", 1) for argument in sys.argv[2:])
    database = duckdb.connect()
    # A query of some seconds would print its progress between the findings.
    database.execute("SET enable_progress_bar = false")
    tables, sequences = {}, []
    for name in sorted(set(lake.seen_tables) | set(exports)):
        table = Table(lake, name, database)
        sequences += table.sequences
        tables[name] = table.report
        if name in exports and table.versions:
            table.compare(exports[name])
    total = sum(len(s) for s in sequences)
    if total:
        database.register("sequences", pa.table({"s": pa.concat_arrays([pa.array(s) for s in sequences])}))
        distinct = one(database, "select count(distinct s) from sequences")
        if distinct != total:
            problem(f"{total - distinct} changes share their _seq with another")
    head = lake.entries[-1] if lake.entries else {"generation": 0, "through": {"seq": 0, "position": ""}}
    json.dump({
        "problems": problems,
        "unreferenced": lake.unreferenced(),
        "epochs": len(lake.entries),
        "appends": sum(e["kind"] == "append" for e in lake.entries),
        "generation": head["generation"],
        "seq": head["through"]["seq"],
        "position": head["through"]["position"],
        "tables": tables,
    }, sys.stdout)


main()

"""What landed in one stream's directory of the lake, read without any code of caudal.

usage: landed.py STREAM_DIR            one JSON document
       landed.py STREAM_DIR --query    TPC-H Q1 over the newest rows of lineitem, as text
Only files that the commit log names are read.
"""
import json
import pathlib
import sys

import duckdb

stream = pathlib.Path(sys.argv[1])
commits = [json.loads(p.read_text()) for p in sorted(stream.glob("_log/*.json"))]
files = {}
for commit in commits:
    for entry in commit["tables"]:
        files.setdefault(entry["table"], []).extend(entry["files"])
paths = {t: [str(stream / f["path"]) for f in fs] for t, fs in files.items() if fs}

if "--query" in sys.argv:
    table = next(t for t in paths if t.endswith(".lineitem"))
    duckdb.sql("SET TimeZone = 'UTC'")
    duckdb.from_parquet(paths[table], union_by_name=True).create_view("changes")
    print(duckdb.sql("""
        WITH newest AS (
          SELECT * FROM changes
          QUALIFY row_number() OVER (PARTITION BY l_orderkey, l_linenumber ORDER BY _seq DESC) = 1)
        SELECT l_returnflag AS flag, l_linestatus AS status, sum(l_quantity) AS quantity,
               sum(l_extendedprice) AS base_price,
               sum(l_extendedprice * (1 - l_discount))::decimal(18,2) AS discounted,
               round(avg(l_discount), 4) AS avg_discount, count(*) AS lines
        FROM newest
        WHERE _op <> 'd' AND l_shipdate <= DATE '1998-12-01' - INTERVAL 90 DAY
        GROUP BY ALL ORDER BY ALL"""))
    sys.exit()

# From the commit at the source to the commit in the lake, by the two clocks.
at = [(str(stream / f["path"]), c["committed_at"]) for c in commits for t in c["tables"] for f in t["files"]]
duckdb.execute("CREATE TABLE written (path text, committed timestamptz)")
duckdb.executemany("INSERT INTO written VALUES (?, ?)", at)
median, longest = duckdb.execute("""
    SELECT quantile_cont(lag, 0.5), max(lag) FROM (
      SELECT epoch_us(committed) / 1e6 - epoch_us(_committed_at) / 1e6 AS lag
      FROM read_parquet(?, union_by_name = true, filename = 'path') JOIN written USING (path)
      WHERE _op <> 'r')""", [[path for path, _ in at]]).fetchone()

tables = {}
for table, list_of_paths in sorted(paths.items()):
    counts = dict(duckdb.execute(
        "SELECT _op, count(*) FROM read_parquet(?, union_by_name = true) GROUP BY 1", [list_of_paths]
    ).fetchall())
    tables[table] = {
        "counts": counts,
        "files": len(files[table]),
        "bytes": sum(f["bytes"] for f in files[table]),
    }
kinds = {}
for commit in commits:
    kinds[commit["kind"]] = kinds.get(commit["kind"], 0) + 1
print(json.dumps({"commits": kinds, "tables": tables, "position": commits[-1]["through"]["position"],
                  "lag": None if median is None else [median, longest]}))

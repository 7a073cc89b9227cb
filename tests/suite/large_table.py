"""Sums over what the lake says of one table of a copy that was never begun anew.

Arguments: the stream's directory, the table. Prints one JSON document. Folding by a join with
the few changed keys keeps this fast for tables of any size.
"""

import json
import pathlib
import sys

import duckdb

stream, table = pathlib.Path(sys.argv[1]), sys.argv[2]
files, chunks = [], []
for entry in sorted((stream / "_log").glob("*.json")):
    for part in json.loads(entry.read_text())["tables"]:
        if part["table"] == table:
            files += [str(stream / f["path"]) for f in part["files"]]
            chunks += (part.get("snapshot") or {}).get("chunks", [])

db = duckdb.connect()
db.execute(f"create view lake as select * from read_parquet({files}, union_by_name = true)")
db.execute("""create table changed as
    select id, arg_max({'op': _op, 'k': k, 'name': name, 'amount': amount}, _seq) as last
      from lake where _op <> 'r' group by id""")
db.execute("""create view now as
    select id, k, name, amount from lake where _op = 'r' and id not in (select id from changed)
    union all
    select id, last.k, last.name, last.amount from changed where last.op <> 'd'""")
count, ids, amounts, digests = db.execute("""
    select count(*), sum(id), sum(amount),
           sum(('0x' || substr(sha256(concat_ws('|', id, k, name, amount)), 1, 8))::ubigint)
      from now""").fetchone()
# A row that was changed between two chunks may be in both; its change wins over either.
copied, distinct = db.execute("""
    select count(*), count(distinct id) from lake
     where _op = 'r' and id not in (select id from changed)""").fetchone()
print(json.dumps({
    "sums": f"{count} {ids} {amounts} {digests}",
    "copied": copied,
    "copied_twice": copied - distinct,
    "chunks": len(chunks),
    "chunks_twice": len(chunks) - len(set(chunks)),
    "files": len(files),
    "bytes": sum(pathlib.Path(f).stat().st_size for f in files),
}))

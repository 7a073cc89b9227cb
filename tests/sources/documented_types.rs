//! The type tables of docs/types.md, against what discovery finds on every server.

use crate::database::{Place, on};
use caudal_tests::databases::Kind;

on!(postgres: the_page_is_true_of_postgres);
on!(mysql and mariadb: the_page_is_true_of_mysql_and_mariadb);

const PAGE: &str = include_str!("../../docs/types.md");

/// What stands in backquotes in a table's cell; a backquote cannot be part of it.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// (source type, lake type) of every row of a section whose both cells are in code.
fn documented(section: &str) -> Vec<(String, String)> {
    let heading = format!("\n## {section}\n");
    let (_, rest) = PAGE.split_once(&heading).expect(section);
    let body = rest.split("\n## ").next().unwrap_or(rest);
    let mut found = Vec::new();
    for line in body.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let (sources, lakes) = (quoted(cells[0]), quoted(cells[1]));
        if sources.is_empty() || lakes.is_empty() {
            continue;
        }
        assert!(
            lakes.len() == 1 || lakes.len() == sources.len(),
            "{line}: one lake type, or one for each source type"
        );
        for (at, source) in sources.into_iter().enumerate() {
            let lake = lakes.get(at).unwrap_or(&lakes[0]).clone();
            found.push((source, lake));
        }
    }
    found
}

async fn compare(place: Place, section: &str) {
    let pairs = documented(section);
    assert!(pairs.len() > 30, "the page has lost its tables: {pairs:?}");
    let columns: Vec<String> = pairs
        .iter()
        .enumerate()
        .map(|(i, (source, _))| format!("c{i} {source}"))
        .collect();
    // MySQL would give the first timestamp a default of its own.
    let null = |c: &String| match place.kind() {
        Kind::Postgres => c.clone(),
        _ => format!("{c} NULL"),
    };
    let columns: Vec<String> = columns.iter().map(null).collect();
    let create = format!(
        "CREATE TABLE t (id bigint PRIMARY KEY, {})",
        columns.join(", ")
    );
    let db = place.database(&[&create]).await;
    let found = db.open(db.options()).discover().await.unwrap().remove(0);
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    for (i, (source, lake)) in pairs.iter().enumerate() {
        let name = format!("c{i}");
        let column = found.columns.iter().find(|c| c.name == name).expect(source);
        assert_eq!(column.lake_type.to_string(), *lake, "{source}");
    }
}

async fn the_page_is_true_of_postgres(place: Place) {
    // numeric with a negative scale or one above its precision came with PostgreSQL 15.
    compare(place, "PostgreSQL").await;
}

async fn the_page_is_true_of_mysql_and_mariadb(place: Place) {
    compare(place, "MySQL and MariaDB").await;
}

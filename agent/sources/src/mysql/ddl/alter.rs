//! ALTER TABLE, clause by clause.
//!
//! Clauses are told apart by the commas outside of parentheses, and only those that name a
//! column's coming, going, renaming or retyping are read; all others change nothing that the
//! lake shows, or are seen by what the server says of the table afterwards.

use super::tokens::Token;
use super::{Effect, Parser};
use caudal_model::TableName;

/// An ALTER TABLE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alter {
    /// What it does to columns, in its order.
    pub clauses: Vec<Clause>,
    /// Rows that do not fit are dropped in silence (`ALTER IGNORE`).
    pub ignore: bool,
}

/// A clause that names a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// A column comes.
    Add {
        /// Its name.
        column: String,
        /// The constant of its DEFAULT as it is written, if it has one.
        default: Option<String>,
    },
    /// A column goes.
    Drop(String),
    /// A column is renamed.
    Rename(String, String),
    /// A column gets a definition, perhaps the same.
    Modify {
        /// Its name, after a renaming of the same clause.
        column: String,
        /// The definition does not allow null.
        not_null: bool,
    },
    /// A column's default changes for rows to come.
    Default(String),
}

/// Reads what follows the word ALTER; `None` if it is not about a table.
pub(super) fn alter(p: &mut Parser<'_>) -> Option<Vec<Effect>> {
    p.accept("ONLINE");
    let ignore = p.accept("IGNORE");
    if !p.accept("TABLE") {
        return None;
    }
    p.if_exists();
    let table = p.table()?;
    let mut alter = Alter {
        ignore,
        ..Alter::default()
    };
    let mut effects = Vec::new();
    let mut renamed = None;
    for clause in clauses(p.tokens) {
        let mut c = Parser {
            tokens: clause,
            ..*p
        };
        if let Some(found) = rewrites(&table, c) {
            effects.extend(found);
        } else if let Some(to) = renames(&mut c) {
            renamed = Some(to);
        } else {
            columns(&mut c, &mut alter.clauses);
        }
    }
    effects.insert(0, Effect::Altered(table.clone(), alter));
    if let Some(to) = renamed {
        effects.push(Effect::Renamed(table, to));
    }
    Some(effects)
}

/// Splits at the commas outside of parentheses.
fn clauses(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0u32;
    tokens
        .split(|t| {
            match t {
                Token::Sign('(') => depth += 1,
                Token::Sign(')') => depth = depth.saturating_sub(1),
                Token::Sign(',') => return depth == 0,
                _ => {}
            }
            false
        })
        .collect()
}

/// A clause by which rows come or go without a word in the log.
fn rewrites(table: &TableName, c: Parser<'_>) -> Option<Vec<Effect>> {
    let at = |i: usize, words: &[&str]| {
        let token = c.tokens.get(i);
        token.is_some_and(|t| words.iter().any(|w| t.is(w)))
    };
    // A column may be dropped before a partition is: the words need not come first, because
    // table options before them need no comma.
    let found = (0..c.tokens.len()).find(|i| {
        (at(
            *i,
            &[
                "DROP", "TRUNCATE", "EXCHANGE", "CONVERT", "IMPORT", "DISCARD",
            ],
        ) && at(i + 1, &["PARTITION", "TABLE", "TABLESPACE"]))
            && !(at(*i, &["DROP"]) && at(i + 1, &["TABLE"]))
    })?;
    let what = "a partition was dropped, emptied or exchanged";
    let mut out = vec![Effect::Rewritten(table.clone(), what)];
    let rest = c.tokens.get(found + 1..).unwrap_or_default();
    if let Some(other) = rest.iter().position(|t| t.is("TABLE")) {
        let mut p = Parser {
            tokens: rest.get(other + 1..).unwrap_or_default(),
            ..c
        };
        if let Some(other) = p.table() {
            if at(found, &["CONVERT"]) {
                // CONVERT PARTITION … TO TABLE makes it, CONVERT TABLE … TO PARTITION takes it.
                let into = at(found + 1, &["PARTITION"]);
                out.push(if into {
                    Effect::Created(other)
                } else {
                    Effect::Dropped(other)
                });
            } else {
                out.push(Effect::Rewritten(other, what));
            }
        }
    }
    Some(out)
}

/// `RENAME [TO|AS] name`.
fn renames(c: &mut Parser<'_>) -> Option<TableName> {
    let at = c.tokens.iter().position(|t| t.is("RENAME"))?;
    // Anywhere: options before it need no comma. But a column may be called so.
    let mut p = Parser {
        tokens: c.tokens.get(at + 1..)?,
        ..*c
    };
    if at > 0
        && c.tokens
            .first()
            .is_some_and(|t| COLUMN_WORDS.iter().any(|w| t.is(w)))
    {
        return None;
    }
    if p.accept_any(&["COLUMN", "INDEX", "KEY"]) {
        return None;
    }
    p.accept_any(&["TO", "AS"]);
    p.sign('=');
    p.table()
}

const COLUMN_WORDS: [&str; 5] = ["ADD", "DROP", "CHANGE", "MODIFY", "ALTER"];

fn columns(c: &mut Parser<'_>, out: &mut Vec<Clause>) {
    // Options before the first clause need no comma: `ENGINE = InnoDB ADD x INT` is not valid
    // in either server, so that clauses of columns begin with their word.
    if c.accept("ADD") {
        add(c, out);
    } else if c.accept("DROP") {
        if c.accept_any(&[
            "INDEX",
            "KEY",
            "PRIMARY",
            "FOREIGN",
            "CHECK",
            "CONSTRAINT",
            "PERIOD",
        ]) {
            return;
        }
        c.accept("COLUMN");
        c.if_exists();
        out.extend(c.name().map(Clause::Drop));
    } else if c.accept("RENAME") {
        if c.accept("COLUMN") {
            c.if_exists();
            let from = c.name();
            c.accept("TO");
            out.extend(from.zip(c.name()).map(|(a, b)| Clause::Rename(a, b)));
        }
    } else if c.accept("CHANGE") {
        c.accept("COLUMN");
        c.if_exists();
        if let Some((from, to)) = c.name().and_then(|a| Some((a, c.name()?))) {
            if from != to {
                out.push(Clause::Rename(from, to.clone()));
            }
            modify(c, to, out);
        }
    } else if c.accept("MODIFY") {
        c.accept("COLUMN");
        c.if_exists();
        if let Some(column) = c.name() {
            modify(c, column, out);
        }
    } else if c.accept("ALTER") {
        if c.accept_any(&["INDEX", "KEY", "CHECK", "CONSTRAINT"]) {
            return;
        }
        c.accept("COLUMN");
        c.if_exists();
        out.extend(c.name().map(Clause::Default));
    }
}

fn modify(c: &Parser<'_>, column: String, out: &mut Vec<Clause>) {
    let key = c.tokens.iter().any(|t| t.is("PRIMARY"));
    let not_null = key
        || c.tokens
            .windows(2)
            .any(|w| matches!(w, [a, b] if a.is("NOT") && b.is("NULL")));
    out.push(Clause::Modify { column, not_null });
}

fn add(c: &mut Parser<'_>, out: &mut Vec<Clause>) {
    const OTHERS: [&str; 12] = [
        "INDEX",
        "KEY",
        "UNIQUE",
        "PRIMARY",
        "FOREIGN",
        "CONSTRAINT",
        "CHECK",
        "FULLTEXT",
        "SPATIAL",
        "PARTITION",
        "PERIOD",
        "SYSTEM",
    ];
    if c.accept("COLUMN") {
        c.if_exists();
    } else if matches!(c.tokens, [Token::Word(w, _), ..] if OTHERS.contains(&w.as_str())) {
        return;
    } else {
        c.if_exists();
    }
    if c.sign('(') {
        let inner = match c.tokens.split_last() {
            Some((Token::Sign(')'), rest)) => rest,
            _ => c.tokens,
        };
        for definition in clauses(inner) {
            let mut p = Parser {
                tokens: definition,
                ..*c
            };
            if !matches!(p.tokens, [Token::Word(w, _), ..] if OTHERS.contains(&w.as_str())) {
                definition_of(&mut p, out);
            }
        }
        return;
    }
    definition_of(c, out);
}

fn definition_of(p: &mut Parser<'_>, out: &mut Vec<Clause>) {
    let Some(column) = p.name() else { return };
    let at = p.tokens.iter().position(|t| t.is("DEFAULT"));
    let rest = at.and_then(|at| p.tokens.get(at + 1..)).unwrap_or_default();
    let default = match rest {
        [Token::Text(text), ..] => Some(text.clone()),
        [Token::Sign('-'), Token::Word(_, w), rest @ ..] => Some(format!("-{}", number(w, rest))),
        [Token::Word(_, w), rest @ ..] => Some(number(w, rest)),
        // An expression; it matches no default that the server tells.
        [_, ..] => Some("(".to_owned()),
        [] => None,
    };
    out.push(Clause::Add { column, default });
}

/// A number's digits; those after a point are words of their own.
fn number(whole: &str, rest: &[Token]) -> String {
    match rest {
        [Token::Sign('.'), Token::Word(_, part), ..] => format!("{whole}.{part}"),
        _ => whole.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Context, Statement, parse};
    use super::*;

    fn effects(sql: &str) -> Vec<Effect> {
        let context = Context {
            database: "d",
            ..Context::default()
        };
        match parse(sql, context) {
            Statement::Tables(effects) => effects,
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn clauses_of(sql: &str) -> Vec<Clause> {
        match effects(sql).remove(0) {
            Effect::Altered(_, alter) => alter.clauses,
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn t(s: &str) -> TableName {
        s.parse().expect(s)
    }

    #[test]
    fn columns_that_come_go_and_change() {
        let add = |column: &str, default: Option<&str>| Clause::Add {
            column: column.into(),
            default: default.map(Into::into),
        };
        let modify = |column: &str, not_null| Clause::Modify {
            column: column.into(),
            not_null,
        };
        assert_eq!(
            clauses_of(
                "ALTER TABLE a ADD x INT DEFAULT -1.5 FIRST, add column if not exists `y` enum('a,b','c') default 'c' after x, ADD (z int, KEY (z), w decimal(5,2) default (1+1)), ADD UNIQUE KEY k (x), ALGORITHM=INSTANT"
            ),
            [
                add("x", Some("-1.5")),
                add("y", Some("c")),
                add("z", None),
                add("w", Some("("))
            ]
        );
        assert_eq!(
            clauses_of(
                "alter table a change column `x` y int not null, MODIFY z bigint NULL, rename column p to q, rename index i to j"
            ),
            [
                Clause::Rename("x".into(), "y".into()),
                modify("y", true),
                modify("z", false),
                Clause::Rename("p".into(), "q".into()),
            ]
        );
        assert_eq!(
            clauses_of(
                "alter table a drop x, drop column if exists y, drop primary key, alter z set default 1, drop foreign key f"
            ),
            [
                Clause::Drop("x".into()),
                Clause::Drop("y".into()),
                Clause::Default("z".into())
            ]
        );
        assert_eq!(
            clauses_of("alter table a engine=innodb, convert to character set latin1"),
            []
        );
    }

    #[test]
    fn partitions_and_renames() {
        let rewritten = |name: &str| {
            Effect::Rewritten(t(name), "a partition was dropped, emptied or exchanged")
        };
        assert_eq!(
            effects("alter table a exchange partition p with table b")[1..],
            [rewritten("d.a"), rewritten("d.b")]
        );
        assert_eq!(
            effects("alter table a truncate partition p")[1..],
            [rewritten("d.a")]
        );
        assert_eq!(
            effects("alter table a drop partition p, q")[1..],
            [rewritten("d.a")]
        );
        assert_eq!(
            effects("alter table a import tablespace")[1..],
            [rewritten("d.a")]
        );
        assert_eq!(
            effects("alter table a convert partition p to table b")[1..],
            [rewritten("d.a"), Effect::Created(t("d.b"))]
        );
        for sql in [
            "ALTER TABLE a ADD x INT, RENAME TO b",
            "alter table a rename = b",
            "alter table a rename as b, comment 'x'",
            "alter table if exists a rename d.b",
        ] {
            let last = effects(sql).pop();
            assert_eq!(last, Some(Effect::Renamed(t("d.a"), t("d.b"))), "{sql}");
        }
        assert_eq!(effects("alter table a rename column x to y").len(), 1);
    }
}

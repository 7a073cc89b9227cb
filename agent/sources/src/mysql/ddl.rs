//! What a statement in the log does to tables, as far as rows cannot say it.
//!
//! The log holds the statement as it was typed, in the grammar of its server's version. It is
//! read by a tokenizer that knows comments, quotes and versioned comments, and only as far
//! as ADR 0033 and 0035 need: which tables come, go or lose rows, and of ALTER TABLE which
//! columns are named how. A statement that is not understood names the tables that it may
//! touch; what it did to them is asked of the server.

mod alter;
mod tokens;

pub use alter::{Alter, Clause};
pub use tokens::Quoting;

use caudal_model::TableName;
use tokens::{Token, tokens};

/// What a statement does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// BEGIN, START TRANSACTION, XA START.
    Begin,
    /// COMMIT.
    Commit,
    /// ROLLBACK, of the whole transaction.
    Rollback,
    /// ROLLBACK TO a savepoint, in the middle of one.
    RollbackTo,
    /// XA COMMIT of the xid, as [`super::decode::events::xa_prepare`] prints it.
    XaCommit(String),
    /// XA ROLLBACK.
    XaRollback(String),
    /// SAVEPOINT, XA END and their kin.
    Nothing,
    /// TRUNCATE TABLE.
    Truncate(TableName),
    /// What happens to tables, in its order.
    Tables(Vec<Effect>),
    /// Rows were changed by a statement, not by row events (`binlog_format` is not ROW).
    Rows(Vec<TableName>),
    /// Not understood; what it names may be a table.
    Other(Vec<TableName>),
}

/// What happens to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It is gone.
    Dropped(TableName),
    /// It is gone under this name; another of the name that follows came.
    Renamed(TableName, TableName),
    /// It came, if it was not there.
    Created(TableName),
    /// One of this name came in place of another.
    Replaced(TableName),
    /// Its definition may have changed.
    Altered(TableName, Alter),
    /// Rows of it changed without a word in the log.
    Rewritten(TableName, &'static str),
    /// Every table of the database is gone.
    DatabaseDropped(String),
}

/// How a statement is to be read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The session's default database.
    pub database: &'a str,
    /// What its `sql_mode` says of quotes.
    pub quoting: Quoting,
    /// Names of tables are kept in lower case, however they are written.
    pub lower_case: bool,
}

#[derive(Clone, Copy)]
struct Parser<'a> {
    tokens: &'a [Token],
    context: Context<'a>,
}

impl Parser<'_> {
    fn accept(&mut self, word: &str) -> bool {
        match self.tokens.split_first() {
            Some((t, rest)) if t.is(word) => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn accept_any(&mut self, words: &[&str]) -> bool {
        words.iter().any(|w| self.accept(w))
    }

    fn if_exists(&mut self) {
        if self.accept("IF") {
            self.accept("NOT");
            self.accept("EXISTS");
        }
    }

    fn sign(&mut self, sign: char) -> bool {
        match self.tokens.split_first() {
            Some((Token::Sign(c), rest)) if *c == sign => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn name(&mut self) -> Option<String> {
        let (first, rest) = self.tokens.split_first()?;
        let name = match first {
            Token::Word(_, w) => w.clone(),
            Token::Name(n) => n.clone(),
            _ => return None,
        };
        self.tokens = rest;
        Some(name)
    }

    fn database(&mut self) -> Option<String> {
        let name = self.name()?;
        Some(if self.context.lower_case {
            name.to_lowercase()
        } else {
            name
        })
    }

    fn table(&mut self) -> Option<TableName> {
        // `.t` is a table of the default database.
        let leading = self.sign('.');
        let first = self.database()?;
        if !leading && self.sign('.') {
            return Some(TableName::new(first, self.database()?));
        }
        Some(TableName::new(self.context.database, first))
    }

    fn tables(&mut self) -> Vec<TableName> {
        let mut tables = Vec::new();
        while let Some(t) = self.table() {
            tables.push(t);
            if !self.sign(',') {
                break;
            }
        }
        tables
    }

    fn xid(&mut self) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut hex_next = false;
        let mut format = "1".to_owned();
        for t in self.tokens {
            match t {
                Token::Word(w, _) if w == "X" => hex_next = true,
                Token::Text(s) if hex_next => parts.push(s.to_ascii_lowercase()),
                Token::Text(s) => parts.push(hex::encode(s)),
                Token::Word(w, _) if w.bytes().all(|b| b.is_ascii_digit()) => format = w.clone(),
                Token::Sign(',') => hex_next = false,
                _ => break,
            }
        }
        parts.resize(2, String::new());
        format!("X'{}',X'{}',{format}", parts[0], parts[1])
    }

    /// Every name in the statement that could be a table: exact enough to find the few that
    /// the stream carries.
    fn named(self) -> Vec<TableName> {
        let of = |i: usize| {
            let tokens = self.tokens.get(i..)?;
            Parser { tokens, ..self }.table()
        };
        (0..self.tokens.len()).filter_map(of).collect()
    }
}

/// Reads a statement.
pub fn parse(sql: &str, context: Context<'_>) -> Statement {
    let (all, whole) = tokens(sql, context.quoting);
    let everything = Parser {
        tokens: &all,
        context,
    };
    let mut p = everything;
    let Some(Token::Word(first, _)) = all.first() else {
        return Statement::Other(everything.named());
    };
    p.tokens = all.get(1..).unwrap_or_default();
    let effects = match first.as_str() {
        "BEGIN" => return Statement::Begin,
        "START" if p.accept("TRANSACTION") => return Statement::Begin,
        "COMMIT" => return Statement::Commit,
        "ROLLBACK" => {
            p.accept("WORK");
            return if p.accept("TO") {
                Statement::RollbackTo
            } else {
                Statement::Rollback
            };
        }
        "SAVEPOINT" | "RELEASE" => return Statement::Nothing,
        "XA" => return xa(&mut p),
        "TRUNCATE" => {
            p.accept("TABLE");
            match p.table() {
                Some(table) => return Statement::Truncate(table),
                None => None,
            }
        }
        "INSERT" | "REPLACE" | "UPDATE" | "DELETE" | "LOAD" => {
            return Statement::Rows(everything.named());
        }
        "DROP" => drop(&mut p),
        "RENAME" => rename(&mut p),
        "CREATE" => create(&mut p),
        "ALTER" => alter::alter(&mut p),
        _ => None,
    };
    match effects {
        Some(effects) if whole => Statement::Tables(effects),
        _ => Statement::Other(everything.named()),
    }
}

fn xa(p: &mut Parser<'_>) -> Statement {
    if p.accept_any(&["START", "BEGIN"]) {
        Statement::Begin
    } else if p.accept("COMMIT") {
        Statement::XaCommit(p.xid())
    } else if p.accept("ROLLBACK") {
        Statement::XaRollback(p.xid())
    } else {
        Statement::Nothing
    }
}

fn drop(p: &mut Parser<'_>) -> Option<Vec<Effect>> {
    if p.accept_any(&["DATABASE", "SCHEMA"]) {
        p.if_exists();
        return Some(vec![Effect::DatabaseDropped(p.database()?)]);
    }
    // A temporary table hides another; the log tells of both by the same name.
    if p.accept("TEMPORARY") {
        return Some(Vec::new());
    }
    if !p.accept_any(&["TABLE", "TABLES"]) {
        return None;
    }
    // MariaDB writes the statement anew, and puts its first comment here, a versioned one too.
    while p.accept_any(&["TABLE", "TABLES"]) {}
    p.if_exists();
    Some(p.tables().into_iter().map(Effect::Dropped).collect())
}

fn rename(p: &mut Parser<'_>) -> Option<Vec<Effect>> {
    if !p.accept_any(&["TABLE", "TABLES"]) {
        // RENAME USER and what may come.
        return Some(Vec::new());
    }
    p.if_exists();
    let mut out = Vec::new();
    while let Some(from) = p.table() {
        if p.accept("WAIT") {
            p.name();
        }
        p.accept("NOWAIT");
        if !p.accept("TO") {
            return None;
        }
        out.push(Effect::Renamed(from, p.table()?));
        if !p.sign(',') {
            break;
        }
    }
    Some(out)
}

fn create(p: &mut Parser<'_>) -> Option<Vec<Effect>> {
    let replace = p.accept("OR") && p.accept("REPLACE");
    if p.accept("TEMPORARY") {
        return Some(Vec::new());
    }
    if !p.accept("TABLE") {
        return None;
    }
    p.if_exists();
    let table = p.table()?;
    Some(vec![if replace {
        Effect::Replaced(table)
    } else {
        Effect::Created(table)
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(s: &str) -> TableName {
        s.parse().expect(s)
    }

    fn read(sql: &str) -> Statement {
        let context = Context {
            database: "d",
            ..Context::default()
        };
        parse(sql, context)
    }

    #[test]
    fn truncate_in_every_spelling() {
        for sql in [
            "truncate t",
            "TRUNCATE TABLE t",
            "/* a */ truncate /* b */ table -- c\n `t`",
            "TRUNCATE `d`.`t`",
            "truncate table d . t",
            "/*!40000 TRUNCATE TABLE */ t",
            "# x\nTRUNCATE\tTABLE\nt /* y */",
            "truncate .t",
        ] {
            assert_eq!(read(sql), Statement::Truncate(t("d.t")), "{sql}");
        }
        assert_eq!(
            read("truncate `a``b`"),
            Statement::Truncate(TableName::new("d", "a`b"))
        );
        assert_eq!(
            read("truncate x.`a.b`"),
            Statement::Truncate(TableName::new("x", "a.b"))
        );
        let ansi = Context {
            database: "d",
            quoting: Quoting {
                ansi_quotes: true,
                no_backslash_escapes: true,
            },
            lower_case: true,
        };
        assert_eq!(
            parse("truncate \"A\\\"", ansi),
            Statement::Truncate(TableName::new("d", "a\\"))
        );
    }

    #[test]
    fn transactions_and_xa() {
        assert_eq!(read("BEGIN"), Statement::Begin);
        assert_eq!(read("COMMIT /* xid=1 */"), Statement::Commit);
        assert_eq!(read("ROLLBACK"), Statement::Rollback);
        assert_eq!(read("ROLLBACK TO `s`"), Statement::RollbackTo);
        assert_eq!(read("XA END X'61',X'',1"), Statement::Nothing);
        assert_eq!(read("XA START X'61',X'',1"), Statement::Begin);
        assert_eq!(
            read("XA COMMIT X'61',X'62',7"),
            Statement::XaCommit("X'61',X'62',7".into())
        );
        assert_eq!(
            read("XA ROLLBACK 'a'"),
            Statement::XaRollback("X'61',X'',1".into())
        );
    }

    #[test]
    fn tables_that_come_and_go() {
        let effects = |sql: &str| match read(sql) {
            Statement::Tables(effects) => effects,
            other => panic!("{sql}: {other:?}"),
        };
        let gone = |name: &str| Effect::Dropped(t(name));
        let moved = |from: &str, to: &str| Effect::Renamed(t(from), t(to));
        assert_eq!(
            effects("DROP TABLE IF EXISTS `a`,x.b /* generated by server */"),
            [gone("d.a"), gone("x.b")]
        );
        assert_eq!(
            effects("DROP TABLE /*!40000 TABLE */ `a` /* generated by server */"),
            [gone("d.a")]
        );
        assert_eq!(
            effects("rename table a to tmp, b to a, tmp wait 5 to x.b"),
            [
                moved("d.a", "d.tmp"),
                moved("d.b", "d.a"),
                moved("d.tmp", "x.b")
            ]
        );
        assert_eq!(
            effects("CREATE OR REPLACE TABLE a (x int)"),
            [Effect::Replaced(t("d.a"))]
        );
        for sql in [
            "CREATE TABLE IF NOT EXISTS a (x int)",
            "create table a like b",
            "CREATE TABLE a AS SELECT 1",
            "/*!50001 CREATE TABLE*/ `a` (x int)",
        ] {
            assert_eq!(effects(sql), [Effect::Created(t("d.a"))], "{sql}");
        }
        for sql in [
            "DROP TEMPORARY TABLE a",
            "CREATE TEMPORARY TABLE a (x int)",
            "RENAME USER a TO b",
        ] {
            assert_eq!(effects(sql), [], "{sql}");
        }
        assert_eq!(
            effects("DROP DATABASE IF EXISTS `x`"),
            [Effect::DatabaseDropped("x".into())]
        );
    }

    #[test]
    fn what_is_not_understood_names_what_it_may_touch() {
        for sql in [
            "DROP INDEX i ON a",
            "GRANT SELECT ON d.a TO x",
            "CREATE VIEW v AS SELECT * FROM a",
            "OPTIMIZE LOCAL TABLE a",
            "( ALTER a )",
        ] {
            let Statement::Other(named) = read(sql) else {
                panic!("{sql}")
            };
            assert!(named.contains(&t("d.a")), "{sql}: {named:?}");
        }
        for sql in ["", "'", "/*", "`"] {
            assert!(matches!(read(sql), Statement::Other(_)), "{sql}");
        }
        let rows = read("insert into t values (1)");
        assert!(matches!(rows, Statement::Rows(v) if v.contains(&t("d.t"))));
    }
}

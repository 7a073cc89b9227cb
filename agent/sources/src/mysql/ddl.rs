//! What a statement in the log does to tables, as far as rows cannot say it.
//!
//! The log holds the statement as it was typed. Only its first words and the names of
//! tables are read, by a tokenizer that knows comments, quotes and versioned comments;
//! a statement that is not understood has no effect here. Changes of columns need no
//! parsing: the next table map shows them.

use caudal_model::TableName;

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
    /// The tables' rows changed, or moved to another name, without row events.
    Replaced {
        /// The tables.
        tables: Vec<TableName>,
        /// What happened.
        what: &'static str,
    },
    /// A whole database was dropped.
    DropDatabase(String),
    /// Rows were changed by a statement, not by row events (`binlog_format` is not ROW).
    Rows(Vec<TableName>),
    /// Anything else.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// An unquoted word, upper case, and as it was written.
    Word(String, String),
    /// A quoted identifier.
    Name(String),
    /// A quoted string.
    Text(String),
    Sign(char),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(w, _) if w == word)
    }
}

/// Words are read up to here; a table name that stands later is not seen.
const MAX_TOKENS: usize = 4096;

fn tokens(sql: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next()
        && out.len() < MAX_TOKENS
    {
        let comment = c == '#'
            || rest
                .strip_prefix("--")
                .is_some_and(|r| r.is_empty() || r.starts_with(char::is_whitespace));
        if comment {
            rest = rest.split_once('\n').map_or("", |(_, r)| r);
        } else if let Some(after) = rest.strip_prefix("/*") {
            // The server runs what stands in /*! … */: drop the marks, keep the words.
            let versioned = after.strip_prefix("M!").or_else(|| after.strip_prefix('!'));
            rest = match versioned {
                Some(inner) => inner.trim_start_matches(|c: char| c.is_ascii_digit()),
                None => after.split_once("*/").map_or("", |(_, r)| r),
            };
        } else if let Some(after) = rest.strip_prefix("*/") {
            rest = after;
        } else if matches!(c, '`' | '\'' | '"') {
            let (text, after) = quoted(rest, c);
            out.push(if c == '\'' {
                Token::Text(text)
            } else {
                Token::Name(text)
            });
            rest = after;
        } else if word_char(c) {
            let end = rest.find(|c| !word_char(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            out.push(Token::Word(word.to_ascii_uppercase(), word.to_owned()));
            rest = after;
        } else {
            if !c.is_whitespace() {
                out.push(Token::Sign(c));
            }
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

fn word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// The inside of a quoted token that `text` begins with, and what follows it.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if c == '\\' && quote != '`' {
            out.extend(chars.next().map(|(_, c)| c));
        } else if c == quote {
            if chars.next_if(|(_, n)| *n == quote).is_none() {
                return (out, text.get(i + 1..).unwrap_or_default());
            }
            out.push(c);
        } else {
            out.push(c);
        }
    }
    (out, "")
}

struct Parser<'a> {
    tokens: &'a [Token],
    database: &'a str,
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

    fn accept_all(&mut self, words: &[&str]) {
        for w in words {
            self.accept(w);
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

    fn table(&mut self) -> Option<TableName> {
        let first = self.name()?;
        if self.sign('.') {
            return Some(TableName::new(first, self.name()?));
        }
        Some(TableName::new(self.database, first))
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
}

/// Reads a statement that ran with `database` as its default.
pub fn parse(sql: &str, database: &str) -> Statement {
    let all = tokens(sql);
    let mut p = Parser {
        tokens: &all,
        database,
    };
    let Some(Token::Word(first, _)) = all.first() else {
        return Statement::Other;
    };
    p.tokens = all.get(1..).unwrap_or_default();
    match first.as_str() {
        "BEGIN" => Statement::Begin,
        "START" if p.accept("TRANSACTION") => Statement::Begin,
        "COMMIT" => Statement::Commit,
        "ROLLBACK" => {
            p.accept("WORK");
            if p.accept("TO") {
                Statement::RollbackTo
            } else {
                Statement::Rollback
            }
        }
        "SAVEPOINT" | "RELEASE" => Statement::Nothing,
        "XA" => xa(&mut p),
        "TRUNCATE" => {
            p.accept("TABLE");
            p.table().map_or(Statement::Other, Statement::Truncate)
        }
        "DROP" => drop(&mut p),
        "RENAME" => rename(&mut p),
        "CREATE" => create(&mut p),
        "ALTER" => alter(&mut p),
        "INSERT" | "REPLACE" | "UPDATE" | "DELETE" | "LOAD" => {
            Statement::Rows(named(&all, database))
        }
        _ => Statement::Other,
    }
}

fn xa(p: &mut Parser<'_>) -> Statement {
    if p.accept("START") || p.accept("BEGIN") {
        Statement::Begin
    } else if p.accept("COMMIT") {
        Statement::XaCommit(p.xid())
    } else if p.accept("ROLLBACK") {
        Statement::XaRollback(p.xid())
    } else {
        Statement::Nothing
    }
}

fn drop(p: &mut Parser<'_>) -> Statement {
    if p.accept("DATABASE") || p.accept("SCHEMA") {
        p.accept_all(&["IF", "EXISTS"]);
        return p.name().map_or(Statement::Other, Statement::DropDatabase);
    }
    if p.accept("TEMPORARY") || !(p.accept("TABLE") || p.accept("TABLES")) {
        return Statement::Other;
    }
    p.accept_all(&["IF", "EXISTS"]);
    let mut tables = Vec::new();
    while let Some(t) = p.table() {
        tables.push(t);
        if !p.sign(',') {
            break;
        }
    }
    Statement::Replaced {
        tables,
        what: "it was dropped",
    }
}

fn rename(p: &mut Parser<'_>) -> Statement {
    if !(p.accept("TABLE") || p.accept("TABLES")) {
        return Statement::Other;
    }
    p.accept_all(&["IF", "EXISTS"]);
    let mut tables = Vec::new();
    while let Some(from) = p.table() {
        tables.push(from);
        p.accept_all(&["WAIT", "NOWAIT"]);
        if !p.accept("TO") {
            break;
        }
        tables.extend(p.table());
        if !p.sign(',') {
            break;
        }
    }
    Statement::Replaced {
        tables,
        what: "it was renamed",
    }
}

fn create(p: &mut Parser<'_>) -> Statement {
    let replace = p.accept("OR") && p.accept("REPLACE");
    if !replace || p.accept("TEMPORARY") || !p.accept("TABLE") {
        return Statement::Other;
    }
    Statement::Replaced {
        tables: p.table().into_iter().collect(),
        what: "it was replaced",
    }
}

fn alter(p: &mut Parser<'_>) -> Statement {
    p.accept_all(&["ONLINE", "IGNORE"]);
    if !p.accept("TABLE") {
        return Statement::Other;
    }
    p.accept_all(&["IF", "EXISTS"]);
    let Some(table) = p.table() else {
        return Statement::Other;
    };
    let mut tables = vec![table];
    while let Some((first, rest)) = p.tokens.split_first() {
        p.tokens = rest;
        let partition = rest.first().is_some_and(|t| t.is("PARTITION"));
        if partition
            && ["DROP", "TRUNCATE", "EXCHANGE", "CONVERT"]
                .iter()
                .any(|w| first.is(w))
        {
            if let Some(at) = rest.iter().position(|t| t.is("TABLE")) {
                p.tokens = rest.get(at + 1..).unwrap_or_default();
                tables.extend(p.table());
            }
            return Statement::Replaced {
                tables,
                what: "a partition was dropped or exchanged",
            };
        }
        if first.is("RENAME")
            && !rest
                .first()
                .is_some_and(|t| ["COLUMN", "INDEX", "KEY"].iter().any(|w| t.is(w)))
        {
            p.accept_all(&["TO", "AS"]);
            p.sign('=');
            tables.extend(p.table());
            return Statement::Replaced {
                tables,
                what: "it was renamed",
            };
        }
    }
    Statement::Other
}

/// Every name in a statement that could be a table: exact enough to find the few that the
/// stream carries.
fn named(all: &[Token], database: &str) -> Vec<TableName> {
    (0..all.len())
        .filter_map(|i| {
            Parser {
                tokens: all.get(i..)?,
                database,
            }
            .table()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(s: &str) -> TableName {
        s.parse().expect(s)
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
        ] {
            assert_eq!(parse(sql, "d"), Statement::Truncate(t("d.t")), "{sql}");
        }
        assert_eq!(
            parse("truncate `a``b`", "d"),
            Statement::Truncate(TableName::new("d", "a`b"))
        );
        assert_eq!(
            parse("truncate x.`a.b`", "d"),
            Statement::Truncate(TableName::new("x", "a.b"))
        );
    }

    #[test]
    fn transactions_and_xa() {
        assert_eq!(parse("BEGIN", ""), Statement::Begin);
        assert_eq!(parse("COMMIT /* xid=1 */", ""), Statement::Commit);
        assert_eq!(parse("ROLLBACK", ""), Statement::Rollback);
        assert_eq!(parse("ROLLBACK TO `s`", ""), Statement::RollbackTo);
        assert_eq!(parse("XA END X'61',X'',1", ""), Statement::Nothing);
        assert_eq!(parse("XA START X'61',X'',1", ""), Statement::Begin);
        assert_eq!(
            parse("XA COMMIT X'61',X'62',7", ""),
            Statement::XaCommit("X'61',X'62',7".into())
        );
        assert_eq!(
            parse("XA ROLLBACK 'a'", ""),
            Statement::XaRollback("X'61',X'',1".into())
        );
    }

    #[test]
    fn tables_that_were_replaced() {
        let replaced = |sql: &str| match parse(sql, "d") {
            Statement::Replaced { tables, .. } => tables,
            other => panic!("{sql}: {other:?}"),
        };
        assert_eq!(
            replaced("DROP TABLE IF EXISTS `a`,x.b /* generated by server */"),
            [t("d.a"), t("x.b")]
        );
        assert_eq!(
            replaced("rename table a to b, c to x.d"),
            [t("d.a"), t("d.b"), t("d.c"), t("x.d")]
        );
        assert_eq!(
            replaced("ALTER TABLE a ADD x INT, RENAME TO b"),
            [t("d.a"), t("d.b")]
        );
        assert_eq!(
            replaced("alter table a exchange partition p with table b"),
            [t("d.a"), t("d.b")]
        );
        assert_eq!(replaced("alter table a truncate partition p"), [t("d.a")]);
        assert_eq!(replaced("CREATE OR REPLACE TABLE a (x int)"), [t("d.a")]);
        for other in [
            "ALTER TABLE a RENAME COLUMN x TO y",
            "ALTER TABLE a ADD COLUMN z INT",
            "DROP TEMPORARY TABLE a",
            "DROP VIEW a",
            "CREATE TABLE a (x int)",
            "GRANT SELECT ON *.* TO x",
            "",
            "'",
            "/*",
        ] {
            assert_eq!(parse(other, "d"), Statement::Other, "{other}");
        }
        assert_eq!(
            parse("DROP DATABASE IF EXISTS `x`", "d"),
            Statement::DropDatabase("x".into())
        );
        assert!(
            matches!(parse("insert into t values (1)", "d"), Statement::Rows(v) if v.contains(&t("d.t")))
        );
    }
}

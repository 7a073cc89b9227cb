//! Statements as words, names, texts and signs: comments, quotes and versioned comments.

/// What the session's `sql_mode` says of quotes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quoting {
    /// Double quotes stand around names, not around text.
    pub ansi_quotes: bool,
    /// A backslash in a text is a character like any other.
    pub no_backslash_escapes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// An unquoted word, upper case, and as it was written.
    Word(String, String),
    /// A quoted identifier.
    Name(String),
    /// A quoted string.
    Text(String),
    Sign(char),
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(w, _) if w == word)
    }
}

/// Words are read up to here; [`tokens`] says so by what it returns.
const MAX_TOKENS: usize = 64 << 10;

/// The tokens, and whether they are all of the statement.
pub(super) fn tokens(sql: &str, quoting: Quoting) -> (Vec<Token>, bool) {
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
            let name = c == '`' || (c == '"' && quoting.ansi_quotes);
            let (text, after) = quoted(rest, c, !name && !quoting.no_backslash_escapes);
            out.push(if name {
                Token::Name(text)
            } else {
                Token::Text(text)
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
    (out, rest.is_empty())
}

fn word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// The inside of a quoted token that `text` begins with, and what follows it.
fn quoted(text: &str, quote: char, backslash: bool) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((i, c)) = chars.next() {
        if c == '\\' && backslash {
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

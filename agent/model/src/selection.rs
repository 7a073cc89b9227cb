//! Which tables a stream carries.

use crate::TableName;
use wildmatch::WildMatch;

/// The `include` and `exclude` patterns of `[tables]`.
///
/// A pattern is `schema.table`; `*` stands for any characters, `?` for one. The
/// pattern is matched against schema and table separately, so `a*.b` never
/// matches the table `b` of a schema whose name holds a dot by accident.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Vec<(WildMatch, WildMatch)>,
    exclude: Vec<(WildMatch, WildMatch)>,
}

impl Selection {
    /// Parses the patterns; the error names the pattern that is not `schema.table`.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self, String> {
        let parse = |patterns: &[S]| {
            patterns
                .iter()
                .map(|p| {
                    let t: TableName = p.as_ref().parse()?;
                    Ok((WildMatch::new(&t.schema), WildMatch::new(&t.name)))
                })
                .collect::<Result<Vec<_>, String>>()
        };
        Ok(Selection {
            include: parse(include)?,
            exclude: parse(exclude)?,
        })
    }

    /// Whether the stream carries this table.
    pub fn matches(&self, table: &TableName) -> bool {
        let hit = |patterns: &[(WildMatch, WildMatch)]| {
            patterns
                .iter()
                .any(|(s, n)| s.matches(&table.schema) && n.matches(&table.name))
        };
        hit(&self.include) && !hit(&self.exclude)
    }

    /// Whether `include` means this table by a name of its own: by a pattern that begins as
    /// the name does, and not with a wildcard.
    pub fn names(&self, table: &TableName) -> bool {
        let own = |n: &WildMatch| {
            let pattern = n.to_string();
            pattern.chars().next() == table.name.chars().next() && n.matches(&table.name)
        };
        self.include
            .iter()
            .any(|(s, n)| s.matches(&table.schema) && own(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclude_wins_over_include() {
        let s = Selection::new(&["public.*", "x.y"], &["public.audit_*"]).unwrap();
        assert!(s.matches(&TableName::new("public", "orders")));
        assert!(!s.matches(&TableName::new("public", "audit_2024")));
        assert!(s.matches(&TableName::new("x", "y")));
        assert!(!s.matches(&TableName::new("x", "z")));
        assert!(Selection::new(&["orders"], &[]).is_err());
        assert!(s.names(&TableName::new("x", "y")));
        assert!(!s.names(&TableName::new("public", "orders")));
    }
}

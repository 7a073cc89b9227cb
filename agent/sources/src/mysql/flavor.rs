//! What differs between MySQL and MariaDB, decided once a connection.

use std::fmt;

/// The two families of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// MySQL 8.0 and later.
    MySql,
    /// MariaDB 10.6 and later.
    MariaDb,
}

impl Flavor {
    /// The `source.kind` of the config file.
    pub fn name(self) -> &'static str {
        match self {
            Flavor::MySql => "mysql",
            Flavor::MariaDb => "mariadb",
        }
    }
}

/// A server's version, as its greeting says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Reads the version of a greeting such as `9.7.0` or `5.5.5-10.11.6-MariaDB-log`.
pub fn parse_version(text: &str) -> (Flavor, Version) {
    let flavor = if text.contains("MariaDB") {
        Flavor::MariaDb
    } else {
        Flavor::MySql
    };
    // MariaDB before 11 hides behind a version that old replicas accept.
    let text = match flavor {
        Flavor::MariaDb => text.strip_prefix("5.5.5-").unwrap_or(text),
        Flavor::MySql => text,
    };
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u16>().unwrap_or(0))
        .chain(std::iter::repeat(0));
    let mut next = || numbers.next().unwrap_or(0);
    (flavor, Version(next(), next(), next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings() {
        assert_eq!(parse_version("9.7.0"), (Flavor::MySql, Version(9, 7, 0)));
        assert_eq!(
            parse_version("5.5.5-10.11.14-MariaDB-0+deb12u2-log"),
            (Flavor::MariaDb, Version(10, 11, 14))
        );
        assert_eq!(
            parse_version("11.8.6-MariaDB"),
            (Flavor::MariaDb, Version(11, 8, 6))
        );
        assert_eq!(parse_version("x").1, Version(0, 0, 0));
    }
}

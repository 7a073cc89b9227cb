//! MySQL 8.0 and later, MariaDB 10.6 and later.

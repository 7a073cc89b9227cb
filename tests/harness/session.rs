//! One client's connection to a test server, with SQL in and text out, alike for
//! every kind of database.

use crate::databases::{Address, Kind};
use crate::{Context, Failure, Result};
use futures::{StreamExt, TryStreamExt};
use mysql_async::prelude::Queryable;
use std::path::Path;
use tokio::io::AsyncWriteExt;
use tokio_postgres::SimpleQueryMessage;

/// A row's cells as the server prints them; `None` is NULL.
pub type TextRow = Vec<Option<String>>;

/// A connection. What it runs is not in a transaction unless the SQL begins one.
pub enum Session {
    /// PostgreSQL
    Postgres(tokio_postgres::Client),
    /// MySQL and MariaDB
    Mysql(mysql_async::Conn),
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Session::Postgres(_) => "Session(postgres)",
            Session::Mysql(_) => "Session(mysql)",
        })
    }
}

impl Session {
    /// Connects through the server's socket, as a user named in [`Address`] (an empty
    /// password is sent as none).
    pub async fn connect(
        address: &Address,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<Session> {
        let what = || format!("cannot connect to {} as {user}", address.version);
        match address.version.kind() {
            Kind::Postgres => {
                let mut config = tokio_postgres::Config::new();
                config
                    .host_path(&address.socket)
                    .port(address.port)
                    .user(user)
                    .dbname(database);
                if !password.is_empty() {
                    config.password(password);
                }
                let (client, connection) = config
                    .connect(tokio_postgres::NoTls)
                    .await
                    .context(what())?;
                tokio::spawn(connection);
                Ok(Session::Postgres(client))
            }
            Kind::Mysql | Kind::Mariadb => {
                let options = mysql_async::OptsBuilder::default()
                    .socket(Some(address.socket.display().to_string()))
                    .user(Some(user))
                    .pass((!password.is_empty()).then_some(password))
                    .db_name(Some(database));
                Ok(Session::Mysql(
                    mysql_async::Conn::new(options).await.context(what())?,
                ))
            }
        }
    }

    /// Runs one or more statements.
    pub async fn exec(&mut self, sql: &str) -> Result<()> {
        let what = || format!("in `{}`", shorten(sql));
        match self {
            Session::Postgres(client) => client.batch_execute(sql).await.context(what()),
            Session::Mysql(conn) => conn.query_drop(sql).await.context(what()),
        }
    }

    /// Runs one query.
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<TextRow>> {
        let what = || format!("in `{}`", shorten(sql));
        match self {
            Session::Postgres(client) => {
                let messages = client.simple_query(sql).await.context(what())?;
                Ok(messages
                    .iter()
                    .filter_map(|m| match m {
                        SimpleQueryMessage::Row(row) => Some(
                            (0..row.len())
                                .map(|i| row.get(i).map(str::to_owned))
                                .collect(),
                        ),
                        _ => None,
                    })
                    .collect())
            }
            Session::Mysql(conn) => {
                let rows: Vec<mysql_async::Row> = conn.query(sql).await.context(what())?;
                rows.into_iter().map(mysql_text_row).collect()
            }
        }
    }

    /// The first cell of the first row.
    pub async fn scalar(&mut self, sql: &str) -> Result<String> {
        let rows = self.rows(sql).await?;
        rows.into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .ok_or_else(|| Failure::new(format!("`{}` gave nothing", shorten(sql))))
    }

    /// Writes a query's result as CSV with a header: every value quoted, NULL as
    /// nothing at all. Streams; returns the number of bytes.
    pub async fn write_csv(&mut self, columns: &[String], sql: &str, to: &Path) -> Result<u64> {
        let what = || format!("in `{}`", shorten(sql));
        let mut file = tokio::io::BufWriter::new(tokio::fs::File::create(to).await?);
        let header: Vec<String> = columns.iter().map(|c| quoted(c)).collect();
        file.write_all(format!("{}\n", header.join(",")).as_bytes())
            .await?;
        let mut bytes = 0u64;
        match self {
            Session::Postgres(client) => {
                let copy = format!("COPY ({sql}) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE *)");
                let mut stream = Box::pin(client.copy_out(&copy).await.context(what())?);
                while let Some(part) = stream.next().await {
                    let part = part.context(what())?;
                    bytes += part.len() as u64;
                    file.write_all(&part).await?;
                }
            }
            Session::Mysql(conn) => {
                let result = conn.query_iter(sql).await.context(what())?;
                let Some(mut stream) = result
                    .stream_and_drop::<mysql_async::Row>()
                    .await
                    .context(what())?
                else {
                    crate::bail!("`{}` is not a query", shorten(sql));
                };
                let mut line = String::new();
                while let Some(row) = stream.try_next().await.context(what())? {
                    line.clear();
                    for (i, cell) in mysql_text_row(row)?.iter().enumerate() {
                        if i > 0 {
                            line.push(',');
                        }
                        if let Some(text) = cell {
                            line.push_str(&quoted(text));
                        }
                    }
                    line.push('\n');
                    bytes += line.len() as u64;
                    file.write_all(line.as_bytes()).await?;
                }
            }
        }
        file.flush().await?;
        Ok(bytes)
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The text protocol gives every value as the bytes that the server prints.
fn mysql_text_row(row: mysql_async::Row) -> Result<TextRow> {
    row.unwrap()
        .into_iter()
        .map(|value| match value {
            mysql_async::Value::NULL => Ok(None),
            mysql_async::Value::Bytes(bytes) => Ok(Some(String::from_utf8(bytes)?)),
            other => Ok(Some(other.as_sql(true))),
        })
        .collect()
}

fn shorten(sql: &str) -> String {
    let mut text: String = sql.chars().take(200).collect();
    if text.len() < sql.len() {
        text.push('…');
    }
    text
}

//! The databases' own clients, reading and throwing away.

use crate::measure::{self, Taken};
use caudal_tests::databases::Kind;
use caudal_tests::{Result, Source, bail};
use std::path::Path;
use tokio::process::Command;

/// A command's words, for the document: what differs from run to run is left out.
fn words(command: &Command) -> String {
    let command = command.as_std();
    let program = Path::new(command.get_program());
    let mut text = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for word in command.get_args() {
        let word = word.to_string_lossy();
        text.push(' ');
        text.push_str(if word.contains('/') && word.len() > 20 {
            "…"
        } else {
            &word
        });
    }
    text
}

fn psql_like(source: &Source, program: &str) -> Result<Command> {
    let a = source.address();
    let mut command = Command::new(source.server().programs()?.path(program));
    command
        .arg("-h")
        .arg(&a.socket)
        .args(["-p", &a.port.to_string(), "-U", "postgres"]);
    command.args(["-d", source.database()]);
    Ok(command)
}

fn mysql_like(source: &Source, program: &str) -> Result<Command> {
    let mut command = Command::new(source.server().programs()?.path(program));
    command
        .arg("--no-defaults")
        .args(["-u", "root", "-S"])
        .arg(&source.address().socket);
    Ok(command)
}

async fn run(command: Command) -> Result<(Taken, String)> {
    let text = words(&command);
    Ok((measure::run(command).await?, text))
}

/// Reads a whole table.
pub async fn read_table(source: &Source, table: &str) -> Result<(Taken, String)> {
    let command = match source.kind() {
        Kind::Postgres => {
            let mut command = psql_like(source, "psql")?;
            command.args([
                "-qX",
                "-c",
                &format!("COPY {table} TO STDOUT (FORMAT binary)"),
            ]);
            command
        }
        Kind::Mysql | Kind::Mariadb => {
            let mut command = mysql_like(source, "mysql")?;
            command.args([
                "--quick",
                "-e",
                &format!("SELECT * FROM {table}"),
                source.database(),
            ]);
            command
        }
    };
    run(command).await
}

/// Marks the place in the log from which [`read_log`] will read, where the stream stands too.
pub async fn mark(source: &Source, stream: &str) -> Result<String> {
    let mut admin = source.superuser().await?;
    match source.kind() {
        Kind::Postgres => {
            let slot = format!("raw_{stream}");
            admin
                .scalar(&format!(
                    "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
                ))
                .await?;
            Ok(slot)
        }
        Kind::Mysql | Kind::Mariadb => {
            admin.exec("FLUSH BINARY LOGS").await?;
            newest_log(source).await
        }
    }
}

async fn logs(source: &Source) -> Result<Vec<String>> {
    let rows = source.superuser().await?.rows("SHOW BINARY LOGS").await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect())
}

async fn newest_log(source: &Source) -> Result<String> {
    match logs(source).await?.pop() {
        Some(name) => Ok(name),
        None => bail!("{} has no binary log", source.version()),
    }
}

/// Reads the log from a mark to its end.
pub async fn read_log(
    source: &Source,
    stream: &str,
    from: &str,
    directory: &Path,
) -> Result<(Taken, String)> {
    if source.kind() == Kind::Postgres {
        let mut admin = source.superuser().await?;
        let end = admin.scalar("SELECT pg_current_wal_lsn()").await?;
        let mut command = psql_like(source, "pg_recvlogical")?;
        command
            .args([
                "--slot",
                from,
                "--start",
                "--no-loop",
                "--endpos",
                &end,
                "-f",
                "-",
            ])
            .args([
                "-o",
                "proto_version=1",
                "-o",
                &format!("publication_names=caudal_{stream}"),
            ]);
        let read = run(command).await?;
        admin
            .scalar(&format!("SELECT pg_drop_replication_slot('{from}')"))
            .await?;
        return Ok(read);
    }
    // --raw writes a file a log; each is a link to /dev/null.
    let sink = directory.join(format!("raw-{stream}"));
    std::fs::create_dir_all(&sink)?;
    for log in logs(source).await? {
        std::os::unix::fs::symlink("/dev/null", sink.join(log))?;
    }
    let mut command = mysql_like(source, "mysqlbinlog")?;
    command
        .args(["--read-from-remote-server", "--raw", "--to-last-log"])
        .arg(format!("--result-file={}/", sink.display()))
        .arg(from);
    run(command).await
}

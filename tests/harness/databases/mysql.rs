//! How MySQL and MariaDB servers are set up and started.

use super::{Address, Kind, Programs, as_server_user, give_to_server};
use crate::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Run by the server itself at each start, before it accepts connections; one
/// statement a line. Out of the binlog, so that a test's log begins with the test.
const USERS: &str = "\
SET sql_log_bin = 0;
CREATE USER IF NOT EXISTS 'app'@'%' IDENTIFIED BY 'apppw';
GRANT ALL ON *.* TO 'app'@'%';
CREATE USER IF NOT EXISTS 'cdc'@'%' IDENTIFIED BY 'cdcpw';
CREATE DATABASE IF NOT EXISTS app CHARACTER SET utf8mb4;
";

const MYSQL_GRANT: &str = "GRANT SELECT, RELOAD, LOCK TABLES, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'cdc'@'%';\n";
const MARIADB_GRANT: &str =
    "GRANT SELECT, RELOAD, LOCK TABLES, REPLICATION SLAVE, BINLOG MONITOR ON *.* TO 'cdc'@'%';\n";

/// The options that tell a server where its own files are.
fn base_options(programs: &Programs, address: &Address) -> Vec<String> {
    let usr = programs.root().join("usr");
    let mut options = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", address.dir.join("data").display()),
        // Two servers that share one directory take each other's temporary tables.
        format!("--tmpdir={}", address.dir.join("tmp").display()),
    ];
    // A server on PATH knows its own places.
    if programs.is_unpacked() {
        let share = share_dir(programs);
        let plugins = ["lib/mysql/plugin", "lib/mariadb/plugin"].map(|p| usr.join(p));
        let plugins = plugins.iter().find(|p| p.is_dir()).unwrap_or(&plugins[0]);
        options.push(format!("--basedir={}", usr.display()));
        options.push(format!("--plugin-dir={}", plugins.display()));
        options.push(format!("--lc-messages-dir={}", share.display()));
        options.push(format!(
            "--character-sets-dir={}",
            share.join("charsets").display()
        ));
    }
    options
}

/// MariaDB 11 moved its share directory.
fn share_dir(programs: &Programs) -> PathBuf {
    let share = programs.root().join("usr/share");
    let mariadb = share.join("mariadb");
    if mariadb.join("mariadb_system_tables.sql").exists() {
        mariadb
    } else {
        share.join("mysql")
    }
}

pub(super) fn initialize_mysql(
    programs: &Programs,
    address: &Address,
    settings: &[String],
) -> Result<()> {
    prepare(address, MYSQL_GRANT)?;
    let output = as_server_user(&programs.path("mysqld"))
        .args(base_options(programs, address))
        .args(["--initialize-insecure", "--innodb-redo-log-capacity=64M"])
        .args(of_the_data(settings))
        .current_dir(&address.dir)
        .output()
        .context("cannot run mysqld --initialize-insecure")?;
    succeeded("mysqld --initialize-insecure", &output)
}

pub(super) fn initialize_mariadb(
    programs: &Programs,
    address: &Address,
    settings: &[String],
) -> Result<()> {
    prepare(address, MARIADB_GRANT)?;
    let data = address.dir.join("data");
    fs::create_dir_all(&data)?;
    give_to_server(&data)?;
    // The statements that mariadb-install-db feeds to a bootstrapping server: the script
    // itself cannot be pointed at a server that runs through another loader.
    let share = share_dir(programs);
    let prefix = if share.join("mariadb_system_tables.sql").exists() {
        "mariadb"
    } else {
        "mysql"
    };
    let mut sql = "create database mysql;\nuse mysql;\nSET @auth_root_socket=NULL;\n".to_owned();
    for (name, required) in [
        (format!("{prefix}_system_tables.sql"), true),
        (format!("{prefix}_performance_tables.sql"), true),
        (format!("{prefix}_system_tables_data.sql"), true),
        ("maria_add_gis_sp_bootstrap.sql".to_owned(), true),
        (format!("{prefix}_sys_schema.sql"), false),
    ] {
        match fs::read_to_string(share.join(&name)) {
            Ok(text) => sql.push_str(&text),
            Err(e) if required => bail!("{}: {e}", share.join(name).display()),
            Err(_) => {}
        }
    }
    let bootstrap = address.dir.join("bootstrap.sql");
    fs::write(&bootstrap, sql)?;
    let output = as_server_user(&programs.path("mariadbd"))
        .args(base_options(programs, address))
        .args([
            "--bootstrap",
            "--skip-log-bin",
            "--innodb-log-file-size=32M",
        ])
        .args(of_the_data(settings))
        .current_dir(&address.dir)
        .stdin(File::open(&bootstrap)?)
        .output()
        .context("cannot run mariadbd --bootstrap")?;
    succeeded("mariadbd --bootstrap", &output)
}

/// The settings that data is made with and keeps.
fn of_the_data(settings: &[String]) -> impl Iterator<Item = &String> {
    let kept = |s: &&String| s.starts_with("--lower-case-table-names");
    settings.iter().filter(kept)
}

/// The directory for temporary files and the users, which every start needs.
fn prepare(address: &Address, grant: &str) -> Result<()> {
    let tmp = address.dir.join("tmp");
    fs::create_dir_all(&tmp)?;
    give_to_server(&tmp)?;
    fs::write(address.dir.join("users.sql"), format!("{USERS}{grant}"))?;
    Ok(())
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "{what}:\n{}",
            lines[lines.len().saturating_sub(20)..].join("\n")
        );
    }
    Ok(())
}

pub(super) fn command(programs: &Programs, address: &Address, settings: &[String]) -> Command {
    let kind = address.version.kind();
    let mut command = as_server_user(&programs.path(match kind {
        Kind::Mariadb => "mariadbd",
        _ => "mysqld",
    }));
    let dir = address.dir.display();
    command
        .args(base_options(programs, address))
        .arg(format!("--port={}", address.port))
        .arg(format!("--socket={}", address.socket.display()))
        .arg(format!("--pid-file={dir}/server.pid"))
        .arg(format!("--init-file={dir}/users.sql"))
        .arg(format!("--ssl-ca={dir}/ca.pem"))
        .arg(format!("--ssl-cert={dir}/server.pem"))
        .arg(format!("--ssl-key={dir}/server.key"))
        .args([
            "--bind-address=127.0.0.1",
            "--server-id=1",
            "--log-bin=binlog",
            "--binlog-format=ROW",
            "--binlog-row-image=FULL",
            "--binlog-row-metadata=FULL",
            "--sync-binlog=0",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=300",
            "--local-infile=ON",
            "--skip-name-resolve",
            "--default-time-zone=+05:45",
        ])
        .current_dir(&address.dir)
        // Standard output is the log: a log file of its own would have to be found when it fails.
        .stdin(Stdio::null());
    match kind {
        Kind::Mariadb => command.args([
            "--innodb-log-file-size=64M",
            "--gtid-domain-id=0",
            "--gtid-strict-mode=ON",
            "--binlog-annotate-row-events=ON",
        ]),
        _ => command.args([
            "--innodb-redo-log-capacity=128M",
            "--mysqlx=OFF",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--secure-file-priv=",
        ]),
    };
    command.args(settings);
    command
}

/// A server that serves greets with a handshake of protocol 10; one that is still
/// starting has an open port at most.
pub(super) fn is_ready(address: &Address) -> bool {
    let greet = || -> std::io::Result<u8> {
        let mut stream = TcpStream::connect((address.host.as_str(), address.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut head = [0u8; 5];
        stream.read_exact(&mut head)?;
        // An empty answer ends the handshake without counting as a blocked host's attempt.
        let _ = stream.write_all(&[0, 0, 0, 1]);
        Ok(head[4])
    };
    matches!(greet(), Ok(10))
}

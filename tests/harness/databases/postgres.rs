//! How a PostgreSQL server is set up and started.

use super::{Address, Programs, as_server_user, give_to_server};
use crate::{Context, Result, bail};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// `fsync = off`: a killed server loses nothing as long as the machine lives.
/// The time zone is written in POSIX form, which needs no time zone files.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
ssl = on
wal_level = logical
max_wal_senders = 100
max_replication_slots = 100
max_connections = 300
fsync = off
shared_buffers = 64MB
max_wal_size = 4GB
logical_decoding_work_mem = 64kB
jit = off
timezone = '<+0545>-05:45'
log_timezone = 'GMT'
datestyle = 'SQL, DMY'
intervalstyle = 'sql_standard'
bytea_output = 'escape'
log_line_prefix = '%m [%p] %q%a '
";

/// `cdc` may create its publication and slot: it is a member of `app`, which owns the
/// tables, and gets CREATE on each test's database. `reader` may only read and replicate.
const USERS: &str = "\
CREATE ROLE app LOGIN PASSWORD 'apppw' CREATEDB;
CREATE ROLE cdc LOGIN REPLICATION PASSWORD 'cdcpw' IN ROLE app;
CREATE ROLE reader LOGIN REPLICATION PASSWORD 'readerpw';
GRANT pg_read_all_data TO reader;
CREATE DATABASE app OWNER app;
";

const HBA: &str = "\
local all         postgres              trust
local all         all                   scram-sha-256
local replication all                   scram-sha-256
host  all         all      127.0.0.1/32 scram-sha-256
host  replication all      127.0.0.1/32 scram-sha-256
";

pub(super) fn initialize(programs: &Programs, address: &Address) -> Result<()> {
    let dir = &address.dir;
    let data = dir.join("data");
    let output = as_server_user(&programs.path("initdb"))
        .arg("-D")
        .arg(&data)
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "-N",
        ])
        .current_dir(dir)
        .output()
        .context("cannot run initdb")?;
    if !output.status.success() {
        bail!("initdb: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut config = fs::read_to_string(data.join("postgresql.conf"))?;
    config.push_str(SETTINGS);
    for (name, file) in [
        ("ssl_cert_file", "server.pem"),
        ("ssl_key_file", "server.key"),
    ] {
        config.push_str(&format!("{name} = '{}'\n", dir.join(file).display()));
    }
    config.push_str(&format!(
        "unix_socket_directories = '{}'\n",
        address.socket.display()
    ));
    fs::write(data.join("postgresql.conf"), config)?;
    fs::write(data.join("pg_hba.conf"), HBA)?;
    give_to_server(&data.join("postgresql.conf"))?;
    run_single(programs, dir, &data)
}

/// Copies a running server into the directory of a standby, with where to stream from.
pub(super) fn back_up(programs: &Programs, primary: &Address, standby: &Address) -> Result<()> {
    let output = as_server_user(&programs.path("pg_basebackup"))
        .arg("-D")
        .arg(standby.dir.join("data"))
        .args(["-h", &primary.host, "-p", &primary.port.to_string()])
        .args(["-U", "cdc", "-R", "-c", "fast", "-X", "stream"])
        .env("PGPASSWORD", "cdcpw")
        .current_dir(&standby.dir)
        .output()
        .context("cannot run pg_basebackup")?;
    if !output.status.success() {
        bail!("pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Creates the users in single-user mode: no client and no open port are needed for it.
fn run_single(programs: &Programs, dir: &Path, data: &Path) -> Result<()> {
    let mut single = as_server_user(&programs.path("postgres"))
        .args(["--single", "-j", "-D"])
        .arg(data)
        .arg("postgres")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run postgres --single")?;
    if let Some(mut input) = single.stdin.take() {
        // With -j a statement ends at a semicolon and an empty line.
        input.write_all(USERS.replace(";\n", ";\n\n").as_bytes())?;
    }
    let output = single.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || errors.contains("ERROR") || errors.contains("FATAL") {
        bail!("postgres --single: {errors}");
    }
    Ok(())
}

pub(super) fn command(programs: &Programs, address: &Address, settings: &[String]) -> Command {
    let mut command = as_server_user(&programs.path("postgres"));
    command
        .arg("-D")
        .arg(address.dir.join("data"))
        .args(["-p", &address.port.to_string()])
        .current_dir(&address.dir);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command
}

/// The postmaster writes its id into the first line of its pid file and its state into
/// the eighth; a killed one leaves the file behind.
pub(super) fn is_ready(address: &Address, pid: u32) -> bool {
    fs::read_to_string(address.dir.join("data/postmaster.pid")).is_ok_and(|text| {
        let line = |n| text.lines().nth(n).map(str::trim);
        line(0) == Some(&pid.to_string()) && line(7) == Some("ready")
    })
}

/// Whether a start failed only because processes of a killed server were still ending.
pub(super) fn must_start_again(log_tail: &str) -> bool {
    log_tail
        .lines()
        .rev()
        .take(3)
        .any(|l| l.contains("shared memory block") || l.contains("lock file \"postmaster.pid\""))
}

//! Real database servers, each on a free port in a directory of its own.
//!
//! [`Server::shared`] gives every test of a run the same server of a version: tests
//! are processes of their own (nextest), so the server is found through a file and
//! kept alive by leases ([`lease`]). [`Server::start`] gives a private one, for tests
//! that need other settings or kill it.
//!
//! The servers' defaults are hostile on purpose (an odd time zone, an odd date style),
//! because the lake must not depend on them.

mod binaries;
mod lease;
mod mysql;
mod postgres;
mod tls;

use crate::{Context, Result, bail};
use lease::Lease;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use binaries::{Programs, programs};

/// How long a server may take to start; a loaded machine is slow, a broken server fails at once.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a shared server stays without a user, so that the next test finds it running.
const SHARED_GRACE_SECONDS: u32 = 20;
/// The user that servers run as where the tests run as root, which no server accepts.
const NOBODY: u32 = 65534;

/// A database server that the tests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Version {
    /// PostgreSQL 15
    Postgres15,
    /// PostgreSQL 17
    Postgres17,
    /// PostgreSQL 18
    Postgres18,
    /// MySQL 9.7
    Mysql97,
    /// MariaDB 10.11
    Mariadb1011,
    /// MariaDB 11.8
    Mariadb118,
}

/// The three kinds of source; what differs between versions of one kind is not the harness's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// PostgreSQL
    Postgres,
    /// MySQL
    Mysql,
    /// MariaDB
    Mariadb,
}

impl Kind {
    /// The value of `source.kind` in caudal's config.
    pub fn config_name(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::Mysql => "mysql",
            Kind::Mariadb => "mariadb",
        }
    }
}

impl Version {
    /// Every version that the suite runs on.
    pub const ALL: [Version; 6] = [
        Version::Postgres15,
        Version::Postgres17,
        Version::Postgres18,
        Version::Mysql97,
        Version::Mariadb1011,
        Version::Mariadb118,
    ];

    /// The kind of source.
    pub fn kind(self) -> Kind {
        match self {
            Version::Postgres15 | Version::Postgres17 | Version::Postgres18 => Kind::Postgres,
            Version::Mysql97 => Kind::Mysql,
            Version::Mariadb1011 | Version::Mariadb118 => Kind::Mariadb,
        }
    }

    /// Its directory in the cache.
    pub fn prefix_name(self) -> &'static str {
        match self {
            Version::Postgres15 => "pg15",
            Version::Postgres17 => "pg17",
            Version::Postgres18 => "pg18",
            Version::Mysql97 => "mysql97",
            Version::Mariadb1011 => "mariadb1011",
            Version::Mariadb118 => "mariadb118",
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Version::Postgres15 => "PostgreSQL 15",
            Version::Postgres17 => "PostgreSQL 17",
            Version::Postgres18 => "PostgreSQL 18",
            Version::Mysql97 => "MySQL 9.7",
            Version::Mariadb1011 => "MariaDB 10.11",
            Version::Mariadb118 => "MariaDB 11.8",
        })
    }
}

/// Where a running server is. Users: `cdc`/`cdcpw` (what caudal needs and no more),
/// `app`/`apppw` (owns the tables), and the superuser (`postgres`, `root`) without a
/// password through the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The version asked for.
    pub version: Version,
    /// Always `127.0.0.1`; the certificate names it and `localhost`.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// PostgreSQL: the directory of the socket. MySQL, MariaDB: the socket.
    pub socket: PathBuf,
    /// PEM file of the authority that signed the server's certificate.
    pub ca_file: PathBuf,
    /// The server's directory; its log is `server.log` in it.
    pub dir: PathBuf,
}

/// A database server that runs at least as long as this value lives.
#[derive(Debug)]
pub struct Server {
    address: Address,
    settings: Vec<String>,
    /// The process of a private server.
    child: Mutex<Option<Child>>,
    lease: Lease,
}

impl Server {
    /// The server of this version that all tests of this machine's user share; it is
    /// started if there is none, and stops some seconds after its last user is gone.
    ///
    /// Do not change its settings and do not stop it.
    pub fn shared(version: Version) -> Result<Server> {
        let base = base_dir()?;
        let name = format!("shared-{}", version.prefix_name());
        let starting = File::options()
            .create(true)
            .append(true)
            .open(base.join(format!("{name}.starting")))?;
        starting.lock()?;
        let lease = Lease::take(&base.join(format!("{name}.lock")))?;
        let ready = base.join(format!("{name}.json"));
        if let Ok(bytes) = fs::read(&ready) {
            let address: Address = serde_json::from_slice(&bytes)?;
            if TcpStream::connect((address.host.as_str(), address.port)).is_ok() {
                return Ok(Server {
                    address,
                    settings: Vec::new(),
                    child: Mutex::default(),
                    lease,
                });
            }
            // Its process died, or the machine was started anew.
            let _ = fs::remove_dir_all(&address.dir);
            fs::remove_file(&ready)?;
        }
        let mut server = Self::launch(version, &[], &base, lease, SHARED_GRACE_SECONDS, &ready)?;
        let unfinished = ready.with_extension("json.new");
        fs::write(&unfinished, serde_json::to_vec(&server.address)?)?;
        fs::rename(&unfinished, &ready)?;
        // From here on the keeper alone stops it; this process must only not leave a zombie.
        if let Some(mut child) = server.child.get_mut().ok().and_then(Option::take) {
            std::thread::spawn(move || child.wait());
        }
        Ok(server)
    }

    /// A private server with additional settings: `name=value` for PostgreSQL,
    /// options of the server's command line (`--name=value`) for MySQL and MariaDB;
    /// they come last and win. It is stopped and removed on drop.
    pub fn start<S: AsRef<str>>(version: Version, settings: &[S]) -> Result<Server> {
        let base = base_dir()?;
        let lock = base.join(format!(
            "private-{}-{}.lock",
            version.prefix_name(),
            unique()
        ));
        let lease = Lease::take(&lock)?;
        let settings: Vec<String> = settings.iter().map(|s| s.as_ref().to_owned()).collect();
        Self::launch(version, &settings, &base, lease, 0, Path::new(""))
    }

    /// A standby of a PostgreSQL server, which streams its log and serves reads; `settings` come
    /// behind the primary's.
    pub fn standby(&self, settings: &[&str]) -> Result<Server> {
        let version = self.address.version;
        let base = base_dir()?;
        let lease = Lease::take(&base.join(format!(
            "private-{}-{}.lock",
            version.prefix_name(),
            unique()
        )))?;
        let programs = programs(version)?;
        let dir = base.join(format!("{}-{}", version.prefix_name(), unique()));
        make_server_dir(&dir)?;
        if !crate::keep() {
            lease.keep_server(0, &dir, Path::new(""))?;
        }
        let address = Address {
            port: free_port()?,
            // The configuration that is copied names the primary's directory.
            socket: self.address.socket.clone(),
            ca_file: self.address.ca_file.clone(),
            dir,
            host: self.address.host.clone(),
            version,
        };
        postgres::back_up(&programs, &self.address, &address)?;
        let own = settings.iter().map(|s| (*s).to_owned());
        let server = Server {
            address,
            settings: self.settings.iter().cloned().chain(own).collect(),
            child: Mutex::default(),
            lease,
        };
        server.run(&programs)?;
        Ok(server)
    }

    fn launch(
        version: Version,
        settings: &[String],
        base: &Path,
        lease: Lease,
        grace: u32,
        ready: &Path,
    ) -> Result<Server> {
        let programs = programs(version)?;
        let dir = base.join(format!("{}-{}", version.prefix_name(), unique()));
        make_server_dir(&dir)?;
        if crate::keep() {
            announce(&format!("{version}: kept in {}", dir.display()));
        } else {
            lease.keep_server(grace, &dir, ready)?;
        }
        tls::write_certificates(&dir)?;
        let address = Address {
            version,
            host: "127.0.0.1".into(),
            port: free_port()?,
            socket: match version.kind() {
                Kind::Postgres => dir.clone(),
                Kind::Mysql | Kind::Mariadb => dir.join("server.sock"),
            },
            ca_file: dir.join("ca.pem"),
            dir,
        };
        match version.kind() {
            Kind::Postgres => postgres::initialize(&programs, &address)?,
            Kind::Mysql => mysql::initialize_mysql(&programs, &address, settings)?,
            Kind::Mariadb => mysql::initialize_mariadb(&programs, &address, settings)?,
        }
        let server = Server {
            address,
            settings: settings.to_vec(),
            child: Mutex::default(),
            lease,
        };
        server.run(&programs)?;
        Ok(server)
    }

    /// Starts the process and waits until it serves.
    fn run(&self, programs: &Programs) -> Result<()> {
        let a = &self.address;
        let mut command = match a.version.kind() {
            Kind::Postgres => postgres::command(programs, a, &self.settings),
            Kind::Mysql | Kind::Mariadb => mysql::command(programs, a, &self.settings),
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(a.dir.join("server.log"))?;
        // A group of its own: neither a terminal's ^C nor a test runner's kill reaches it.
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut spawn = || -> Result<Child> {
            let child = command
                .spawn()
                .context(format!("cannot start {}", a.version))?;
            fs::write(a.dir.join("pid"), child.id().to_string())?;
            Ok(child)
        };
        let mut child = spawn()?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let serving = match a.version.kind() {
                Kind::Postgres => postgres::is_ready(a, child.id()),
                Kind::Mysql | Kind::Mariadb => mysql::is_ready(a),
            };
            if serving {
                break;
            }
            let ended = child.try_wait()?;
            if ended.is_some()
                && Instant::now() < deadline
                && a.version.kind() == Kind::Postgres
                && postgres::must_start_again(&self.log_tail())
            {
                child = spawn()?;
                continue;
            }
            if ended.is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!(
                    "{} did not start ({ended:?}):\n{}",
                    a.version,
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.child.lock().unwrap_or_else(|e| e.into_inner()) = Some(child);
        Ok(())
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The version asked for.
    pub fn version(&self) -> Version {
        self.address.version
    }

    /// The programs that belong to it.
    pub fn programs(&self) -> Result<Programs> {
        programs(self.address.version)
    }

    /// Stops a private server in an orderly way; [`Self::resume`] starts it again on
    /// the same port with the same data.
    pub fn stop(&self) -> Result<()> {
        // Sessions are ended, not waited for: SIGINT is PostgreSQL's fast shutdown.
        let signal = match self.version().kind() {
            Kind::Postgres => "INT",
            Kind::Mysql | Kind::Mariadb => "TERM",
        };
        self.end(signal)
    }

    /// Kills a private server as a power cut would, but for the disk's cache.
    pub fn kill9(&self) -> Result<()> {
        self.end("KILL")
    }

    /// Starts a stopped or killed private server again.
    pub fn resume(&self) -> Result<()> {
        self.run(&self.programs()?)
    }

    /// [`Self::stop`] and [`Self::resume`].
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.resume()
    }

    fn end(&self, signal: &str) -> Result<()> {
        let mut slot = self.child.lock().unwrap_or_else(|e| e.into_inner());
        let Some(mut child) = slot.take() else {
            bail!(
                "{} is shared or not running: it cannot be stopped",
                self.version()
            );
        };
        end_process(&mut child, signal, Duration::from_secs(60))?;
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.address.dir.join("server.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if crate::keep() {
            if let Some(child) = self.child.get_mut().ok().and_then(Option::take) {
                announce(&format!(
                    "{} left running, pid {}",
                    self.address.version,
                    child.id()
                ));
            }
            return;
        }
        if let Some(mut child) = self.child.get_mut().ok().and_then(Option::take) {
            let _ = end_process(&mut child, "QUIT", Duration::from_secs(5));
            let _ = fs::remove_dir_all(&self.address.dir);
        }
        let _ = &self.lease;
    }
}

/// Signals a process and waits for its end; kills it after `patience`.
pub(crate) fn end_process(child: &mut Child, signal: &str, patience: Duration) -> Result<()> {
    send_signal(child.id(), signal)?;
    let deadline = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Sends a signal to one process by its id.
pub(crate) fn send_signal(pid: u32, signal: &str) -> Result<()> {
    // Through the program: the system call would need unsafe code.
    let status = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .context("cannot run kill")?;
    if !status.success() {
        bail!("process {pid} is gone");
    }
    Ok(())
}

/// A command that runs as a user whom servers accept.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    // The caller's TMPDIR may not be writable for that user.
    command
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("TMPDIR")
        .env("LC_ALL", "C");
    command
}

fn is_root() -> bool {
    uid() == 0
}

fn uid() -> u32 {
    fs::metadata("/proc/self").map_or(NOBODY, |m| m.uid())
}

/// Gives a file to the server's user.
fn give_to_server(path: &Path) -> Result<()> {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

fn make_server_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    give_to_server(dir)
}

/// Where servers live: traversable by the user that they run as.
fn base_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("caudal-servers-{}", uid()));
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// Distinct among all processes of this machine and within each.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Tells the person who runs this what happens on the machine.
#[allow(clippy::print_stderr)]
pub(crate) fn announce(text: &str) {
    eprintln!("caudal-tests: {text}");
}

//! Finds a server's programs: unpacked before, unpacked now, or on this machine already.

use super::{Kind, Version, announce, base_dir, is_root};
use crate::cache::{cache_dir, lock};
use crate::{Context, Result, bail};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const UNPACK: &str = include_str!("unpack.sh");

/// The programs of one server.
#[derive(Debug, Clone)]
pub struct Programs {
    root: PathBuf,
    bin: Vec<PathBuf>,
}

impl Programs {
    /// The path of a program; of the first place if it is missing, so that the error names it.
    pub fn path(&self, name: &str) -> PathBuf {
        let found = self
            .bin
            .iter()
            .map(|dir| dir.join(name))
            .find(|p| p.exists());
        found.unwrap_or_else(|| {
            self.bin
                .first()
                .map_or_else(|| name.into(), |b| b.join(name))
        })
    }

    /// The directory that holds `usr`.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether they come from the cache, and not from this machine's own packages.
    pub(super) fn is_unpacked(&self) -> bool {
        self.root != Path::new("/")
    }
}

/// Debian's suite and packages of a version.
fn packages(version: Version) -> (&'static str, &'static [&'static str]) {
    const MARIADB: &[&str] = &[
        "mariadb-server-core",
        "mariadb-client-core",
        "mariadb-client",
    ];
    match version {
        Version::Postgres15 => ("bookworm", &["postgresql-15", "libc-bin"]),
        Version::Postgres17 => ("trixie", &["postgresql-17", "libc-bin"]),
        Version::Postgres18 => ("sid", &["postgresql-18", "libc-bin"]),
        Version::Mysql97 => ("sid", &["mysql-server-core", "mysql-client-core"]),
        Version::Mariadb1011 => ("bookworm", MARIADB),
        Version::Mariadb118 => ("trixie", MARIADB),
    }
}

/// The programs of a version, unpacked into the cache if they are not there.
pub fn programs(version: Version) -> Result<Programs> {
    let prefix = cache_dir().join("prefix").join(version.prefix_name());
    let _alone = lock(&format!("unpack-{}", version.prefix_name()))?;
    if unpacked(version, &prefix).is_some() {
        return reachable(version, &prefix);
    }
    match unpack(version, &prefix) {
        Ok(()) => reachable(version, &prefix),
        Err(why) => match on_this_machine(version) {
            Some((programs, found)) => {
                announce(&format!(
                    "{version} cannot be unpacked ({why}); using {found}"
                ));
                Ok(programs)
            }
            None => {
                bail!("{version} cannot be unpacked ({why}), and this machine has no such server")
            }
        },
    }
}

fn server_program(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => "postgres",
        Kind::Mysql => "mysqld",
        Kind::Mariadb => "mariadbd",
    }
}

/// PostgreSQL's programs lie in a directory of their own, which Debian keeps by version.
fn postgres_bins(usr: &Path) -> Vec<PathBuf> {
    let mut bins: Vec<PathBuf> = std::fs::read_dir(usr.join("lib/postgresql"))
        .map(|dir| dir.flatten().map(|e| e.path().join("bin")).collect())
        .unwrap_or_default();
    bins.sort();
    bins.reverse();
    bins
}

fn unpacked(version: Version, prefix: &Path) -> Option<Programs> {
    let mut bin = postgres_bins(&prefix.join("usr"));
    bin.push(prefix.join("bin"));
    let programs = Programs {
        root: prefix.to_owned(),
        bin,
    };
    programs
        .path(server_program(version.kind()))
        .exists()
        .then_some(programs)
}

/// The programs where the servers' user can run them: a home directory is often closed
/// to everybody else, and then a copy made of hard links is used.
fn reachable(version: Version, prefix: &Path) -> Result<Programs> {
    let lacks = |p: &Path| crate::Failure::new(format!("{} lacks its server", p.display()));
    let open = |dir: &Path| dir.metadata().is_ok_and(|m| m.mode() & 0o001 != 0);
    if !is_root() || prefix.ancestors().all(open) {
        return unpacked(version, prefix).ok_or_else(|| lacks(prefix));
    }
    let copies = base_dir()?.join("prefix");
    let copy = copies.join(version.prefix_name());
    let manifest = |p: &Path| std::fs::read(p.join("MANIFEST")).ok();
    if manifest(&copy) != manifest(prefix) || unpacked(version, &copy).is_none() {
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(&copies)?;
        let cp = |how: &str| Command::new("cp").arg(how).args([prefix, &copy]).output();
        if !cp("-al")?.status.success() {
            // Another file system.
            let _ = std::fs::remove_dir_all(&copy);
            let output = cp("-a")?;
            if !output.status.success() {
                bail!("cp: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
    unpacked(version, &copy).ok_or_else(|| lacks(&copy))
}

fn unpack(version: Version, prefix: &Path) -> Result<()> {
    let (suite, names) = packages(version);
    announce(&format!(
        "unpacking {version} (about 300 MB, under a minute) from Debian's signed archive, suite {suite}: {} \
         and what they need, into {}; nothing is installed",
        names.join(", "),
        prefix.display()
    ));
    let output = Command::new("bash")
        .args(["-c", UNPACK, "unpack"])
        .arg(cache_dir().join("apt"))
        .arg(suite)
        .arg(prefix)
        .args(names)
        .output()
        .context("cannot run bash")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}", text.trim().lines().last().unwrap_or("no message"));
    }
    Ok(())
}

/// A server of the same kind that this machine has installed, and its version's text.
fn on_this_machine(version: Version) -> Option<(Programs, String)> {
    let mut bin = postgres_bins(Path::new("/usr"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    bin.extend(std::env::split_paths(&path));
    bin.push("/usr/sbin".into());
    let programs = Programs {
        root: "/".into(),
        bin,
    };
    let server = programs.path(server_program(version.kind()));
    let output = Command::new(&server).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // MariaDB ships a `mysqld` too.
    if version.kind() == Kind::Mysql && text.contains("MariaDB") {
        return None;
    }
    output.status.success().then_some((programs, text))
}

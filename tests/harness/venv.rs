//! Python environments with the oracle's libraries and the second S3 server.

use crate::cache::{cache_dir, lock};
use crate::databases::announce;
use crate::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python interpreter of an environment that has `packages`, made on first use.
pub fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = cache_dir().join("python").join(name);
    let python = dir.join("bin/python");
    let done = dir.join("packages");
    let wanted = packages.join("\n");
    let is_done = || std::fs::read_to_string(&done).is_ok_and(|have| have == wanted);
    if is_done() && python.exists() {
        return Ok(python);
    }
    let _alone = lock(&format!("python-{name}"))?;
    if is_done() && python.exists() {
        return Ok(python);
    }
    announce(&format!(
        "installing {} with pip into {}, an environment of its own",
        packages.join(", "),
        dir.display()
    ));
    let _ = std::fs::remove_dir_all(&dir);
    run(
        Path::new("python3"),
        &["-m", "venv", &dir.display().to_string()],
    )
    .context("Debian and Ubuntu: apt-get install python3-venv")?;
    let mut args = vec![
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    args.extend(packages);
    run(&python, &args)?;
    std::fs::write(&done, wanted)?;
    Ok(python)
}

fn run(program: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(args)
        .output()
        .context(format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} {}: {}{}",
            program.display(),
            args.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

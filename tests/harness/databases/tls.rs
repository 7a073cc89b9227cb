//! Certificates of a test server: an authority of its own and a server certificate for
//! 127.0.0.1 and localhost, so that verify-full is tested as in the field.

use super::give_to_server;
use crate::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = localhost
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth
";

/// Writes `ca.pem`, `server.pem` and `server.key` into `dir`.
pub(super) fn write_certificates(dir: &Path) -> Result<()> {
    fs::write(dir.join("openssl.cnf"), CONFIG)?;
    let req = [
        "req",
        "-config",
        "openssl.cnf",
        "-x509",
        "-nodes",
        "-days",
        "3650",
    ];
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    openssl(
        dir,
        &[
            &req[..],
            &key,
            &["-subj", "/CN=caudal test authority"],
            &[
                "-extensions",
                "authority",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ],
        ]
        .concat(),
    )?;
    openssl(
        dir,
        &[
            &req[..],
            &key,
            &["-CA", "ca.pem", "-CAkey", "ca.key"],
            &[
                "-extensions",
                "server",
                "-keyout",
                "server.key",
                "-out",
                "server.pem",
            ],
        ]
        .concat(),
    )?;
    let key = dir.join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    give_to_server(&key)
}

fn openssl(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(args)
        .output()
        .context("cannot run openssl (version 3 is needed)")?;
    if !output.status.success() {
        bail!(
            "openssl {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

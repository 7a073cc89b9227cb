//! The login of a connection: the server's greeting, TLS, and the methods by which it asks for
//! the password.

use super::decode::Input;
use super::wire::{Connection, MAX_PACKET, Wire, WireError};
use crate::{SourceOptions, TlsMode};
use caudal_model::{Error, Kind};
use mysql_common::scramble::{scramble_native, scramble_sha256};
use secrecy::ExposeSecret;
use std::sync::Arc;

mod capability {
    pub const LONG_PASSWORD: u32 = 1;
    pub const LONG_FLAG: u32 = 1 << 2;
    pub const CONNECT_WITH_DB: u32 = 1 << 3;
    pub const PROTOCOL_41: u32 = 1 << 9;
    pub const SSL: u32 = 1 << 11;
    pub const TRANSACTIONS: u32 = 1 << 13;
    pub const SECURE_CONNECTION: u32 = 1 << 15;
    pub const MULTI_RESULTS: u32 = 1 << 17;
    pub const PLUGIN_AUTH: u32 = 1 << 19;
    pub const CONNECT_ATTRS: u32 = 1 << 20;
    pub const LENENC_AUTH: u32 = 1 << 21;
}

/// What a server says of itself first.
pub(super) struct Greeting {
    pub(super) version: String,
    capabilities: u32,
    nonce: Vec<u8>,
    plugin: String,
}

impl Connection {
    pub(super) async fn log_in(&mut self, options: &SourceOptions, greeting: Greeting) -> Wire<()> {
        use capability::*;
        let mut flags = LONG_PASSWORD
            | LONG_FLAG
            | PROTOCOL_41
            | TRANSACTIONS
            | SECURE_CONNECTION
            | MULTI_RESULTS
            | PLUGIN_AUTH
            | CONNECT_ATTRS
            | LENENC_AUTH;
        let database = options.database.as_deref().filter(|d| !d.is_empty());
        if database.is_some() {
            flags |= CONNECT_WITH_DB;
        }
        let offered = greeting.capabilities & SSL != 0;
        let tls = crate::tls::client_config(&options.tls).map_err(WireError::Other)?;
        let tls = match tls {
            Some(config) if offered => Some(config),
            Some(_) if options.tls.mode != TlsMode::Prefer => {
                return Err(no_tls());
            }
            _ => None,
        };
        let mut hello = Vec::new();
        if tls.is_some() {
            flags |= SSL;
        }
        hello.extend_from_slice(&flags.to_le_bytes());
        hello.extend_from_slice(&(MAX_PACKET as u32).to_le_bytes());
        // utf8mb4_general_ci: every version knows it.
        hello.push(45);
        hello.extend_from_slice(&[0; 23]);
        if let Some(config) = tls {
            self.write(&hello).await?;
            self.start_tls(config, &options.host).await?;
        }
        let password = options.password.expose_secret().as_bytes();
        let mut plugin = greeting.plugin;
        let mut nonce = greeting.nonce;
        let first = answer(&plugin, password, &nonce, self.encrypted).unwrap_or_default();
        hello.extend_from_slice(options.user.as_bytes());
        hello.push(0);
        put_lenenc(&mut hello, &first);
        if let Some(d) = database {
            hello.extend_from_slice(d.as_bytes());
            hello.push(0);
        }
        hello.extend_from_slice(plugin.as_bytes());
        hello.push(0);
        let mut attributes = Vec::new();
        for text in [
            "program_name",
            "caudal",
            "_client_version",
            env!("CARGO_PKG_VERSION"),
        ] {
            put_lenenc(&mut attributes, text.as_bytes());
        }
        put_lenenc(&mut hello, &attributes);
        self.write(&hello).await?;
        loop {
            let packet = self.read().await?;
            match packet.split_first() {
                Some((0x00, _)) => return Ok(()),
                Some((0xfe, rest)) => {
                    let mut input = Input(rest);
                    plugin = String::from_utf8_lossy(input.until_zero()?).into_owned();
                    nonce = input.rest().to_vec();
                    if nonce.last() == Some(&0) {
                        nonce.pop();
                    }
                    let encrypted = self.encrypted;
                    let reply = answer(&plugin, password, &nonce, encrypted)
                        .ok_or_else(|| unknown_plugin(&plugin, encrypted))?;
                    self.write(&reply).await?;
                }
                Some((0x01, [3])) => {}
                Some((0x01, [4])) => self.full_sha2(password, &nonce).await?,
                _ => return Err(WireError::Protocol("the login's answer")),
            }
        }
    }

    /// The server does not hold the password's hash in its cache: it wants the password.
    async fn full_sha2(&mut self, password: &[u8], nonce: &[u8]) -> Wire<()> {
        let mut secret = password.to_vec();
        secret.push(0);
        if !self.encrypted {
            self.write(&[2]).await?;
            let Some((0x01, pem)) = self.read().await?.split_first() else {
                return Err(WireError::Protocol("no public key"));
            };
            let pem = pem.to_vec();
            for (s, n) in secret.iter_mut().zip(nonce.iter().cycle()) {
                *s ^= n;
            }
            // In a task of its own, because the key's parser panics on a malformed key.
            let task =
                tokio::task::spawn_blocking(move || mysql_common::crypto::encrypt(&secret, &pem));
            secret = task
                .await
                .map_err(|_| WireError::Protocol("the server's public key"))?;
        }
        self.write(&secret).await
    }

    async fn start_tls(&mut self, config: Arc<rustls::ClientConfig>, host: &str) -> Wire<()> {
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|e| {
            WireError::Other(
                Error::fatal(Kind::Config, "source.host cannot be verified").caused_by(e),
            )
        })?;
        let plain = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        let connector = tokio_rustls::TlsConnector::from(config);
        let tls = connector.connect(name, plain).await.map_err(|e| {
            // A refused certificate does not become better by trying again.
            let refused = e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
            let text = "the TLS handshake with the source failed";
            WireError::Other(if refused {
                Error::fatal(Kind::Prerequisite, text)
                    .hint("check source.tls, source.ca_file and the server's certificate")
                    .caused_by(e)
            } else {
                Error::retryable(Kind::Source, text).caused_by(e)
            })
        })?;
        self.stream = Box::new(tls);
        self.encrypted = true;
        Ok(())
    }
}

pub(super) fn parse_greeting(packet: &[u8]) -> Wire<Greeting> {
    let mut input = Input(packet);
    if input.u8()? != 10 {
        return Err(WireError::Protocol("the greeting's version"));
    }
    let version = String::from_utf8_lossy(input.until_zero()?).into_owned();
    input.u32()?;
    let mut nonce = input.take(8)?.to_vec();
    input.u8()?;
    let low = input.u16()?;
    input.take(3)?;
    let capabilities = u32::from(input.u16()?) << 16 | u32::from(low);
    let nonce_len = usize::from(input.u8()?);
    input.take(10)?;
    let second = input.take(nonce_len.saturating_sub(8).max(13))?;
    nonce.extend_from_slice(second.strip_suffix(&[0]).unwrap_or(second));
    let plugin = match input.until_zero() {
        Ok(p) => p,
        Err(_) => input.rest(),
    };
    let plugin = String::from_utf8_lossy(plugin).into_owned();
    Ok(Greeting {
        version,
        capabilities,
        nonce,
        plugin,
    })
}

/// The first answer of a login method; `None` if it is not known or not safe here.
fn answer(plugin: &str, password: &[u8], nonce: &[u8], encrypted: bool) -> Option<Vec<u8>> {
    let nonce = nonce.get(..20).unwrap_or(nonce);
    match plugin {
        "mysql_native_password" => Some(
            scramble_native(nonce, password)
                .map(|s| s.to_vec())
                .unwrap_or_default(),
        ),
        "caching_sha2_password" => Some(
            scramble_sha256(nonce, password)
                .map(|s| s.to_vec())
                .unwrap_or_default(),
        ),
        "mysql_clear_password" if encrypted => Some([password, &[0]].concat()),
        _ => None,
    }
}

/// TLS was wanted, and the server has none.
pub(super) fn no_tls() -> WireError {
    WireError::Other(
        Error::fatal(Kind::Prerequisite, "the source does not offer TLS").hint(
            "give the server a certificate (ssl_cert, ssl_key), or set source.tls = \"prefer\"",
        ),
    )
}

pub(super) fn unknown_plugin(plugin: &str, encrypted: bool) -> WireError {
    let hint = if plugin == "mysql_clear_password" && !encrypted {
        "set source.tls = \"require\" or stronger: this account sends its password in clear text"
    } else {
        "use an account with caching_sha2_password or mysql_native_password"
    };
    let text = format!("the source wants the login method {plugin}, which cannot be used here");
    WireError::Other(Error::fatal(Kind::Prerequisite, text).hint(hint))
}

fn put_lenenc(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        n @ 0..=250 => out.push(n as u8),
        n => {
            out.push(0xfc);
            out.extend_from_slice(&(n as u16).to_le_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_greeting_is_refused() {
        assert!(parse_greeting(b"\x0a9.7.0\0\x01\0").is_err());
    }

    #[test]
    fn a_password_never_goes_out_in_clear_text() {
        assert!(answer("mysql_clear_password", b"pw", b"", false).is_none());
        assert!(answer("mysql_clear_password", b"pw", b"", true).is_some());
        assert_eq!(
            answer("mysql_native_password", b"", &[1; 20], false),
            Some(Vec::new())
        );
    }
}

//! TLS of the sources' connections, with the meanings that libpq gives its modes.
//!
//! `prefer` and `require` encrypt and check no certificate; `verify-ca` checks that
//! a known authority signed it; `verify-full` checks the name as well. Handshake
//! signatures are always verified, so that a peer without the certificate's key
//! cannot pass. A certificate that stands in `ca_file` itself is trusted as it is:
//! servers are often given one self-signed certificate, which path building refuses
//! because it is marked as an authority.

use crate::{TlsMode, TlsOptions};
use caudal_model::{Error, Kind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// The client's TLS configuration, or `None` for [`TlsMode::Disable`].
///
/// Errors: [`Kind::Config`] naming the file that cannot be read or holds no certificate.
pub fn client_config(options: &TlsOptions) -> Result<Option<Arc<ClientConfig>>> {
    if options.mode == TlsMode::Disable {
        return Ok(None);
    }
    // Given explicitly: more than one crypto provider may be linked in, and the
    // process-wide default is then a panic.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = verifier(options, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::bug("no TLS version is available").caused_by(e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&options.cert_file, &options.key_file) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "cert_file")?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| {
                file_error("key_file", key, "no private key in PEM form").caused_by(e)
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|e| {
                Error::fatal(
                    Kind::Config,
                    "cert_file and key_file do not belong together",
                )
                .caused_by(e)
            })?
        }
        _ => {
            return Err(Error::fatal(
                Kind::Config,
                "a client certificate needs cert_file and key_file",
            )
            .hint("set both or neither in [source]"));
        }
    };
    Ok(Some(Arc::new(config)))
}

/// Whether a handshake failed on what the peer showed or said, which no repetition mends,
/// and not on the network.
pub fn is_refusal(e: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(e);
    while let Some(e) = cause {
        let inside = e
            .downcast_ref::<std::io::Error>()
            .and_then(|io| io.get_ref());
        if e.is::<rustls::Error>() || inside.is_some_and(|i| i.is::<rustls::Error>()) {
            return true;
        }
        cause = e.source();
    }
    false
}

fn file_error(key: &str, path: &Path, what: &str) -> Error {
    Error::fatal(
        Kind::Config,
        format!("[source] {key}: {}: {what}", path.display()),
    )
    .hint(format!("give {key} the path of a readable PEM file"))
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().map_err(|e| file_error(key, path, "cannot be read").caused_by(e))?;
    if found.is_empty() {
        return Err(file_error(key, path, "no certificate in PEM form"));
    }
    Ok(found)
}

fn verifier(options: &TlsOptions, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
    let verify = matches!(options.mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
    let mut verifier = Verifier {
        provider: provider.clone(),
        chain: None,
        pinned: Vec::new(),
        names: options.mode == TlsMode::VerifyFull,
    };
    if !verify {
        return Ok(verifier);
    }
    let mut roots = RootCertStore::empty();
    match &options.ca_file {
        Some(path) => {
            verifier.pinned = certificates(path, "ca_file")?;
            for c in &verifier.pinned {
                roots
                    .add(c.clone())
                    .map_err(|e| file_error("ca_file", path, "not a certificate").caused_by(e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Error::fatal(
                    Kind::Config,
                    "the system has no certificate authorities",
                )
                .hint("install ca-certificates, or set [source] ca_file"));
            }
        }
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| {
            Error::fatal(Kind::Config, "the certificate authorities cannot be used").caused_by(e)
        })?;
    verifier.chain = Some(chain);
    Ok(verifier)
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any certificate will do.
    chain: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    names: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self
            .pinned
            .iter()
            .any(|p| p.as_ref() == end_entity.as_ref())
        {
            if self.names {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: TlsMode) -> TlsOptions {
        TlsOptions {
            mode,
            ca_file: None,
            cert_file: None,
            key_file: None,
        }
    }

    #[test]
    fn plain_text_needs_no_configuration_and_bad_files_are_named() {
        assert!(client_config(&options(TlsMode::Disable)).unwrap().is_none());
        assert!(client_config(&options(TlsMode::Require)).unwrap().is_some());
        let missing = TlsOptions {
            ca_file: Some("/no/such/ca.pem".into()),
            ..options(TlsMode::VerifyFull)
        };
        let error = client_config(&missing).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("/no/such/ca.pem"), "{error}");
        let half = TlsOptions {
            cert_file: Some("c".into()),
            ..options(TlsMode::Require)
        };
        assert_eq!(client_config(&half).unwrap_err().kind(), Kind::Config);
    }
}

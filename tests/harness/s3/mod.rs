//! An S3 server in this process: real HTTP and verified signatures (SigV4), objects in
//! memory, and faults that a test switches at run time.
//!
//! What it holds is atomic as S3's is: a conditional PUT creates or refuses under one
//! lock, a multipart upload appears whole. `moto` (see [`crate::moto`]) is the second,
//! independent server that caudal is tested against.

mod backend;
mod faults;

use crate::agent::Config;
use crate::{Context, Result};
use backend::Backend;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use s3s::auth::{S3Auth, SecretKey};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use faults::{Fault, Faults};

/// The access key that the server knows; the harness's agents sign with it.
pub const ACCESS_KEY: &str = "AKIDCAUDALTEST";
/// Its secret.
pub const SECRET_KEY: &str = "caudal-test-secret-key";

/// A running server; it ends with this value.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    backend: Backend,
    faults: Arc<Mutex<Faults>>,
    keys: Keys,
    stop: CancellationToken,
}

/// The credentials that the server takes.
#[derive(Debug, Clone)]
struct Keys(Arc<Mutex<(String, String)>>);

impl Default for Keys {
    fn default() -> Self {
        Keys(Arc::new(Mutex::new((ACCESS_KEY.into(), SECRET_KEY.into()))))
    }
}

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let held = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if held.0 == access_key {
            return Ok(held.1.clone().into());
        }
        Err(s3_error!(InvalidAccessKeyId))
    }
}

impl S3Server {
    /// Starts a server with empty buckets on a free port of this machine. It runs in a
    /// thread of its own, whatever runtime the caller uses.
    pub fn start(buckets: &[&str]) -> Result<S3Server> {
        let backend = Backend::new(buckets);
        let faults = Arc::new(Mutex::new(Faults::default()));
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut builder = S3ServiceBuilder::new(backend.clone());
        let keys = Keys::default();
        builder.set_auth(keys.clone());
        let service = builder.build();
        let (stopped, shared) = (stop.clone(), Arc::clone(&faults));
        std::thread::Builder::new()
            .name("s3".into())
            .spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = TcpListener::from_std(listener) else {
                        return;
                    };
                    stopped
                        .run_until_cancelled(serve(listener, service, shared))
                        .await;
                });
            })?;
        Ok(S3Server {
            address,
            backend,
            faults,
            keys,
            stop,
        })
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a config's sink this server: `s3://<bucket>/<prefix>`.
    pub fn configure(&self, config: &mut Config, bucket: &str, prefix: &str) {
        config.set("sink.url", format!("s3://{bucket}/{prefix}"));
        config.set("sink.endpoint", self.endpoint());
        config.set("sink.region", "us-east-1");
        config.set("sink.path_style", true);
    }

    /// From now on the server takes these credentials and no others.
    pub fn rotate(&self, access_key: &str, secret_key: &str) {
        let mut held = self.keys.0.lock().unwrap_or_else(|e| e.into_inner());
        *held = (access_key.to_owned(), secret_key.to_owned());
    }

    /// The faults, to be changed; what is set counts from the next request on.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Every key of a bucket that begins with `prefix`, in order.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.backend
            .objects(bucket, prefix)
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }

    /// An object's bytes.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let found = self.backend.objects(bucket, key).into_iter();
        let mut found = found.filter(|(k, _)| k == key);
        found.next().map(|(_, bytes)| bytes.to_vec())
    }

    /// Replaces an object's bytes, as a failing disk would.
    pub fn damage(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.backend.overwrite(bucket, key, bytes.into());
    }

    /// Multipart uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.backend.open_uploads()
    }

    /// Writes every object below `prefix` to a file below `dir`, for the oracle.
    pub fn dump(&self, bucket: &str, prefix: &str, dir: &Path) -> Result<()> {
        for (key, bytes) in self.backend.objects(bucket, prefix) {
            let file = dir.join(key.trim_start_matches(prefix).trim_start_matches('/'));
            if let Some(parent) = file.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&file, &bytes).context(file.display())?;
        }
        Ok(())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, service: S3Service, faults: Arc<Mutex<Faults>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(move |request| {
                answer(request, service.clone(), Arc::clone(&faults))
            });
            // An error of the handler closes the connection without an answer: a reset
            // or a lost reply, as the client sees it.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), handler)
                .await;
        });
    }
}

/// Why a connection is closed without an answer.
#[derive(Debug)]
struct Broken;
impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("injected fault")
    }
}
impl std::error::Error for Broken {}

async fn answer(
    request: hyper::Request<Incoming>,
    service: S3Service,
    faults: Arc<Mutex<Faults>>,
) -> Result<hyper::Response<s3s::Body>, Broken> {
    let (delay, fault) = faults
        .lock()
        .unwrap_or_else(|e| e.into_inner())
        .next(request.method().as_str(), request.uri().path());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    match fault {
        Some(Fault::Reset) => return Err(Broken),
        Some(Fault::Status(503)) => return refuse(503, "SlowDown"),
        Some(Fault::Status(status)) => return refuse(status, "InternalError"),
        Some(Fault::Refused(status, code)) => return refuse(status, code),
        Some(Fault::Silent) => std::future::pending().await,
        Some(Fault::LostReply) | None => {}
    }
    let response = service
        .call(request.map(s3s::Body::from))
        .await
        .map_err(|_| Broken)?;
    if fault == Some(Fault::LostReply) {
        return Err(Broken);
    }
    Ok(response)
}

fn refuse(status: u16, code: &str) -> Result<hyper::Response<s3s::Body>, Broken> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
         <Message>injected</Message></Error>"
    );
    hyper::Response::builder()
        .status(status)
        .header("content-type", "application/xml")
        .body(s3s::Body::from(body))
        .map_err(|_| Broken)
}

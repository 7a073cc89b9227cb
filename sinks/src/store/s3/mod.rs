//! A store in an S3 bucket, or in a server that speaks its protocol.
//!
//! Why it is correct: a conditional PUT (`If-None-Match: *`) creates an object for one
//! caller only; S3 answers the others 412, or 409 while a rival's request is still
//! running, which is asked again. The SDK repeats requests whose reply was lost, so a
//! 412 may answer this caller's own success: that is [`PutOutcome::Exists`], and the
//! caller reads the object back. An upload is one PUT or one multipart upload; both
//! appear whole or not at all. Reads and listings are strongly consistent.

mod fault;
mod upload;

use super::{ListedObject, PutOutcome, Store, StoreOptions, Upload};
use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption};
use bytes::Bytes;
use caudal_model::{Class, Error, Kind, Result};
use fault::{code_of, store_error};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// The most keys that S3 lists or deletes in one request.
const PAGE: usize = 1000;
/// Parts in flight of all uploads together: with 8 MiB parts, 64 MiB of memory (INV-9).
const PARTS_IN_FLIGHT: usize = 8;
/// How long the store may be silent, if nothing else is said.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes that reach the slowest store in a second, all parts in flight together.
const SLOWEST_LINE: u64 = 64 << 10;
/// Attempts where S3 says that a rival's conditional PUT is still running.
const CONFLICT_ATTEMPTS: u32 = 6;

/// A store in a bucket.
#[derive(Debug, Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: RwLock<Client>,
    options: StoreOptions,
    /// The credentials were refused: what the next request takes is resolved anew.
    stale: AtomicBool,
    /// Some request has been granted.
    worked: AtomicBool,
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
    sse_kms_key_id: Option<String>,
    parts: Arc<Semaphore>,
}

impl S3Store {
    /// The store below `prefix` (without slashes around it) of a bucket. Credentials come
    /// from the standard chain: environment, profile, web identity, ECS task role, EC2.
    ///
    /// # Errors
    /// None yet: the first request shows whether the bucket is there.
    pub async fn open(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Self> {
        let prefix = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}/")
        };
        Ok(S3Store {
            inner: Arc::new(Inner {
                client: RwLock::new(connect(options).await),
                options: options.clone(),
                stale: AtomicBool::new(false),
                worked: AtomicBool::new(false),
                bucket: bucket.to_owned(),
                prefix,
                sse_kms_key_id: options.sse_kms_key_id.clone(),
                parts: Arc::new(Semaphore::new(PARTS_IN_FLIGHT)),
            }),
        })
    }
}

/// A client with credentials that are resolved when it first needs them.
async fn connect(options: &StoreOptions) -> Client {
    let silence = options.read_timeout.unwrap_or(SILENCE);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::standard().with_max_attempts(4))
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(Duration::from_secs(5))
                .read_timeout(silence)
                .operation_attempt_timeout(silence * 4)
                .operation_timeout(silence * 10)
                .build(),
        );
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if options.endpoint.is_some() {
        // Servers other than AWS take any; looking for one asks a metadata service.
        let named = ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .iter()
            .find_map(|v| std::env::var(v).ok());
        loader = loader.region(Region::new(named.unwrap_or_else(|| "us-east-1".to_owned())));
    }
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let config = aws_sdk_s3::config::Builder::from(&loader.load().await)
        .force_path_style(options.path_style)
        .build();
    Client::from_conf(config)
}

impl Inner {
    async fn client(&self) -> Client {
        let held = |c: &RwLock<Client>| c.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.stale.swap(false, Ordering::Relaxed) {
            return held(&self.client);
        }
        let fresh = connect(&self.options).await;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }

    /// The time limits of a request with a body, which all parts in flight share the line with:
    /// the SDK's limit for an answer begins before the body is sent.
    fn limits(&self, bytes: usize) -> aws_sdk_s3::config::Builder {
        let silence = self.options.read_timeout.unwrap_or(SILENCE);
        let share = bytes.saturating_mul(PARTS_IN_FLIGHT) as u64;
        let attempt = silence + Duration::from_secs(share / SLOWEST_LINE);
        aws_sdk_s3::config::Builder::new().timeout_config(
            TimeoutConfig::builder()
                .read_timeout(attempt)
                .operation_attempt_timeout(attempt + silence)
                .operation_timeout((attempt + silence) * 4)
                .build(),
        )
    }

    /// The error of a request. Credentials that were good and are refused may have been
    /// replaced: they are resolved anew, and the request may be tried again.
    fn failed<E>(&self, doing: &str, key: &str, e: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let error = store_error(self.at(doing, key), e);
        if !fault::may_pass(&error) {
            return error;
        }
        self.stale.store(true, Ordering::Relaxed);
        if error.class() == Class::Retryable || !self.worked.load(Ordering::Relaxed) {
            return error;
        }
        let hint = error.hint_text().unwrap_or_default().to_owned();
        Error::retryable(Kind::Store, error.to_string()).hint(hint)
    }

    fn granted(&self) {
        self.worked.store(true, Ordering::Relaxed);
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        let key = self.sse_kms_key_id.clone();
        (key.is_some().then_some(ServerSideEncryption::AwsKms), key)
    }

    fn at(&self, doing: &str, key: &str) -> String {
        format!("{doing} s3://{}/{}{key}", self.bucket, self.prefix)
    }

    /// One attempt at a conditional PUT; `None` if a rival's is still running.
    async fn try_create(&self, key: &str, bytes: Bytes) -> Result<Option<PutOutcome>> {
        let (encryption, kms_key) = self.encryption();
        let sent = self
            .client()
            .await
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .if_none_match("*")
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .body(bytes.into())
            .send()
            .await;
        let Err(e) = sent else {
            self.granted();
            return Ok(Some(PutOutcome::Created));
        };
        match (e.raw_response().map(|r| r.status().as_u16()), code_of(&e)) {
            (Some(412), _) | (_, Some("PreconditionFailed")) => Ok(Some(PutOutcome::Exists)),
            (Some(409), _) | (_, Some("ConditionalRequestConflict")) => Ok(None),
            _ => Err(self.failed("create", key, e)),
        }
    }

    /// `range` is the header's value; the whole object without it.
    async fn try_get(&self, key: &str, range: Option<String>) -> Result<Option<Bytes>> {
        let sent = self
            .client()
            .await
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .set_range(range)
            .send()
            .await;
        match sent {
            Ok(object) => match object.body.collect().await {
                Ok(body) => {
                    self.granted();
                    Ok(Some(body.into_bytes()))
                }
                Err(e) => Err(Error::retryable(Kind::Store, self.at("read", key)).caused_by(e)),
            },
            Err(e) if code_of(&e) == Some("NoSuchKey") => Ok(None),
            // It ends before the part that was asked for.
            Err(e) if code_of(&e) == Some("InvalidRange") => Ok(Some(Bytes::new())),
            Err(e) => Err(self.failed("read", key, e)),
        }
    }

    /// The SDK repeats requests, but not a body that broke off.
    async fn get(&self, key: &str, range: Option<String>) -> Result<Option<Bytes>> {
        match self.try_get(key, range.clone()).await {
            Err(e) if e.class() == caudal_model::Class::Retryable => self.try_get(key, range).await,
            done => done,
        }
    }

    fn relative<'k>(&self, key: &'k str) -> Result<&'k str> {
        key.strip_prefix(&self.prefix).ok_or_else(|| {
            Error::retryable(
                Kind::Store,
                format!("the store listed `{key}`, which was not asked for"),
            )
        })
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> String {
        let url = format!("s3://{}/{}", self.inner.bucket, self.inner.prefix);
        url.trim_end_matches('/').to_owned()
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<PutOutcome> {
        let mut wait = Duration::from_millis(20);
        for _ in 0..CONFLICT_ATTEMPTS {
            if let Some(outcome) = self.inner.try_create(key, bytes.clone()).await? {
                return Ok(outcome);
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        let message = format!(
            "{}: another request for it goes on and on",
            self.inner.at("create", key)
        );
        Err(Error::retryable(Kind::Store, message))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.inner.get(key, None).await
    }

    async fn get_part(&self, key: &str, offset: u64, length: u64) -> Result<Option<Bytes>> {
        if length == 0 {
            return Ok(Some(Bytes::new()));
        }
        let last = offset.saturating_add(length - 1);
        let range = format!("bytes={offset}-{last}");
        self.inner.get(key, Some(range)).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(upload::S3Upload::new(self.inner.clone(), key)))
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ListedObject>> {
        let inner = &self.inner;
        let mut found: Vec<ListedObject> = Vec::new();
        let mut token = None;
        while found.len() < limit {
            let page = inner
                .client()
                .await
                .list_objects_v2()
                .bucket(&inner.bucket)
                .prefix(inner.key(prefix))
                .set_start_after(
                    start_after
                        .filter(|_| token.is_none())
                        .map(|k| inner.key(k)),
                )
                .set_continuation_token(token.take())
                .max_keys((limit - found.len()).min(PAGE) as i32)
                .send()
                .await
                .map_err(|e| inner.failed("list", prefix, e))?;
            inner.granted();
            for object in page.contents() {
                let key = inner.relative(object.key().unwrap_or_default())?.to_owned();
                found.push(ListedObject {
                    key,
                    bytes: object.size().unwrap_or(0).max(0) as u64,
                });
            }
            token = page.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        let inner = &self.inner;
        let full = inner.key(prefix);
        let mut names = Vec::new();
        let mut token = None;
        loop {
            let page = inner
                .client()
                .await
                .list_objects_v2()
                .bucket(&inner.bucket)
                .prefix(&full)
                .delimiter("/")
                .set_continuation_token(token)
                .send()
                .await
                .map_err(|e| inner.failed("list", prefix, e))?;
            for dir in page.common_prefixes() {
                let name = dir.prefix().and_then(|p| p.strip_prefix(&full));
                names.extend(name.and_then(|n| n.strip_suffix('/')).map(str::to_owned));
            }
            token = page.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    async fn delete(&self, keys: &[String]) -> Result<()> {
        let inner = &self.inner;
        for batch in keys.chunks(PAGE) {
            let invalid = |e| Error::bug("a delete without keys").caused_by(e);
            let objects = batch
                .iter()
                .map(|k| {
                    ObjectIdentifier::builder()
                        .key(inner.key(k))
                        .build()
                        .map_err(invalid)
                })
                .collect::<Result<Vec<_>>>()?;
            let delete = Delete::builder()
                .set_objects(Some(objects))
                .quiet(true)
                .build()
                .map_err(invalid)?;
            let sent = inner
                .client()
                .await
                .delete_objects()
                .bucket(&inner.bucket)
                .delete(delete)
                .send()
                .await;
            let reply = sent.map_err(|e| inner.failed("delete from", "", e))?;
            let failed = reply
                .errors()
                .iter()
                .find(|e| e.code() != Some("NoSuchKey"));
            if let Some(e) = failed {
                let key = e.key().unwrap_or_default();
                let message = inner.at("delete from", "") + &format!(": {key}");
                return Err(fault::by_code(message, None, e.code(), e.message()));
            }
        }
        Ok(())
    }

    async fn abort_uploads(
        &self,
        prefix: &str,
        dead: &(dyn for<'k> Fn(&'k str) -> bool + Sync),
    ) -> Result<usize> {
        let inner = &self.inner;
        let mut aborted = 0;
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let page = inner
                .client()
                .await
                .list_multipart_uploads()
                .bucket(&inner.bucket)
                .prefix(inner.key(prefix))
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker)
                .send()
                .await
                .map_err(|e| inner.failed("list the uploads below", prefix, e))?;
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else {
                    continue;
                };
                // Some servers ignore the prefix.
                let below = key
                    .strip_prefix(&inner.prefix)
                    .filter(|k| k.starts_with(prefix));
                if let Some(key) = below.filter(|k| dead(k)) {
                    aborted += usize::from(inner.abort_upload(key, id).await?);
                }
            }
            if page.is_truncated() != Some(true) {
                return Ok(aborted);
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::conformance;

    /// Against a server that is running: `CAUDAL_TEST_S3_ENDPOINT=http://127.0.0.1:9000`,
    /// a bucket `caudal-test`, and credentials in the environment.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "needs CAUDAL_TEST_S3_ENDPOINT"]
    async fn s3_conforms() {
        let endpoint = std::env::var("CAUDAL_TEST_S3_ENDPOINT")
            .expect("set CAUDAL_TEST_S3_ENDPOINT to run this test");
        let options = StoreOptions {
            endpoint: Some(endpoint),
            path_style: true,
            ..StoreOptions::default()
        };
        conformance(async || {
            let prefix = format!("run {:016x}", rand::random::<u64>());
            Arc::new(
                S3Store::open("caudal-test", &prefix, &options)
                    .await
                    .unwrap(),
            ) as Arc<dyn Store>
        })
        .await;
        let nowhere = S3Store::open("caudal-no-such-bucket", "", &options)
            .await
            .unwrap();
        for error in [
            nowhere.get("k").await.unwrap_err(),
            nowhere.put_if_absent("k", Bytes::new()).await.unwrap_err(),
            nowhere.list("", None, 1).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Prerequisite, "{error:?}");
            assert!(error.hint_text().is_some());
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_retryable_store_error() {
        let options = StoreOptions {
            endpoint: Some("http://127.0.0.1:9".into()),
            path_style: true,
            ..StoreOptions::default()
        };
        let store = S3Store::open("lake", "raw", &options).await.unwrap();
        let error = store.get("k").await.unwrap_err();
        // Without credentials in the environment the request is never sent.
        assert!(
            matches!(error.kind(), Kind::Store | Kind::Prerequisite),
            "{error:?}"
        );
    }
}

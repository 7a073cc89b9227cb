//! One object on its way to S3: a single PUT if it is small, else a multipart upload.
//!
//! Parts go up beside each other, as many as the store's shared permits allow;
//! [`S3Upload::write`] waits for one, which is the back-pressure. What was not
//! completed never becomes an object; its parts stay until they are aborted.

use super::Inner;
use super::fault::code_of;
use crate::store::Upload;
use async_trait::async_trait;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadError;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use caudal_model::{Error, Kind, Result};
use std::sync::Arc;
use tokio::task::JoinSet;

/// The least length of a part; S3 asks for 5 MiB of all but the last.
const PART_BYTES: usize = 8 << 20;
/// S3 takes 10,000 parts: past each thousand they double, so that an object can have
/// S3's greatest length.
const PARTS_A_SIZE: i32 = 1000;

pub(super) struct S3Upload {
    inner: Arc<Inner>,
    key: String,
    buffer: BytesMut,
    bytes: u64,
    id: Option<Arc<str>>,
    next_part: i32,
    flying: JoinSet<Result<CompletedPart>>,
    done: Vec<CompletedPart>,
}

impl S3Upload {
    pub(super) fn new(inner: Arc<Inner>, key: &str) -> Self {
        S3Upload {
            inner,
            key: key.to_owned(),
            buffer: BytesMut::new(),
            bytes: 0,
            id: None,
            next_part: 1,
            flying: JoinSet::new(),
            done: Vec::new(),
        }
    }

    fn part_bytes(&self) -> usize {
        PART_BYTES << ((self.next_part - 1) / PARTS_A_SIZE).min(9)
    }

    async fn id(&mut self) -> Result<Arc<str>> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let (encryption, kms_key) = self.inner.encryption();
        let reply = self
            .inner
            .client()
            .await
            .create_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(self.inner.key(&self.key))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .send()
            .await
            .map_err(|e| self.inner.failed("start", &self.key, e))?;
        let id: Arc<str> = reply
            .upload_id()
            .ok_or_else(|| Error::retryable(Kind::Store, "the store gave an upload no id"))?
            .into();
        self.id = Some(id.clone());
        Ok(id)
    }

    async fn send_part(&mut self, body: Bytes) -> Result<()> {
        let id = self.id().await?;
        let permit = self
            .inner
            .parts
            .clone()
            .acquire_owned()
            .await
            .map_err(|e| Error::bug("the store's permits are gone").caused_by(e))?;
        // Learn of a part that failed before sending more.
        while let Some(joined) = self.flying.try_join_next() {
            self.done.push(landed(joined)?);
        }
        let (inner, key, number) = (self.inner.clone(), self.key.clone(), self.next_part);
        let limits = inner.limits(body.len());
        self.next_part += 1;
        self.flying.spawn(async move {
            let _permit = permit;
            let reply = inner
                .client()
                .await
                .upload_part()
                .bucket(&inner.bucket)
                .key(inner.key(&key))
                .upload_id(&*id)
                .part_number(number)
                .checksum_algorithm(ChecksumAlgorithm::Crc32)
                .body(body.into())
                .customize()
                .config_override(limits)
                .send()
                .await
                .map_err(|e| inner.failed("upload", &key, e))?;
            Ok(CompletedPart::builder()
                .part_number(number)
                .set_e_tag(reply.e_tag)
                .set_checksum_crc32(reply.checksum_crc32)
                .build())
        });
        Ok(())
    }

    async fn put_whole(self: Box<Self>) -> Result<()> {
        let limits = self.inner.limits(self.buffer.len());
        let (encryption, kms_key) = self.inner.encryption();
        self.inner
            .client()
            .await
            .put_object()
            .bucket(&self.inner.bucket)
            .key(self.inner.key(&self.key))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .body(self.buffer.freeze().into())
            .customize()
            .config_override(limits)
            .send()
            .await
            .map_err(|e| self.inner.failed("write", &self.key, e))?;
        Ok(())
    }

    async fn complete(mut self: Box<Self>, id: Arc<str>) -> Result<()> {
        if !self.buffer.is_empty() {
            let rest = self.buffer.split().freeze();
            self.send_part(rest).await?;
        }
        while let Some(joined) = self.flying.join_next().await {
            self.done.push(landed(joined)?);
        }
        self.done.sort_by_key(CompletedPart::part_number);
        let parts = self.done.len();
        let sent = self
            .inner
            .client()
            .await
            .complete_multipart_upload()
            .bucket(&self.inner.bucket)
            .key(self.inner.key(&self.key))
            .upload_id(&*id)
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(self.done))
                    .build(),
            )
            .send()
            .await;
        match sent {
            Ok(_) => Ok(()),
            // The object itself tells whether it was completed: by an attempt whose reply
            // was lost, or by a server whose reply the SDK cannot read.
            Err(e) if is_unclear(&e) && self.inner.holds(&self.key, self.bytes, parts).await? => {
                Ok(())
            }
            Err(e) => Err(self.inner.failed("complete", &self.key, e)),
        }
    }
}

/// Whether the request may have succeeded all the same.
fn is_unclear(e: &SdkError<CompleteMultipartUploadError, HttpResponse>) -> bool {
    match (e.raw_response().map(|r| r.status().as_u16()), code_of(e)) {
        (None, _) | (_, Some("NoSuchUpload")) => true,
        (Some(status), None) => status == 200,
        _ => false,
    }
}

fn landed(
    joined: std::result::Result<Result<CompletedPart>, tokio::task::JoinError>,
) -> Result<CompletedPart> {
    joined.map_err(|e| Error::bug("the upload of a part ended abnormally").caused_by(e))?
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while self.buffer.len() + bytes.len() >= self.part_bytes() {
            let fill = bytes.split_to(self.part_bytes() - self.buffer.len());
            self.buffer.extend_from_slice(&fill);
            let part = self.buffer.split().freeze();
            self.send_part(part).await?;
        }
        self.buffer.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        match self.id.clone() {
            None => self.put_whole().await,
            Some(id) => {
                let (inner, key) = (self.inner.clone(), self.key.clone());
                let done = self.complete(id.clone()).await;
                if done.is_err() {
                    // Best effort: what stays is found by `abort_uploads`.
                    let _ = inner.abort_upload(&key, &id).await;
                }
                done
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        // A part that lands after the abort would stay.
        self.flying.shutdown().await;
        match self.id.take() {
            Some(id) => self.inner.abort_upload(&self.key, &id).await.map(drop),
            None => Ok(()),
        }
    }
}

impl Inner {
    /// Ends a multipart upload; whether it was there.
    pub(super) async fn abort_upload(&self, key: &str, id: &str) -> Result<bool> {
        let sent = self
            .client()
            .await
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.key(key))
            .upload_id(id)
            .send()
            .await;
        match sent {
            Ok(_) => Ok(true),
            Err(e) if code_of(&e) == Some("NoSuchUpload") => Ok(false),
            Err(e) => Err(self.failed("abort", key, e)),
        }
    }

    /// Whether the key holds an object of this length that was made of so many parts.
    async fn holds(&self, key: &str, bytes: u64, parts: usize) -> Result<bool> {
        let sent = self
            .client()
            .await
            .head_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .send()
            .await;
        match sent {
            Ok(head) => {
                let made_of = format!("-{parts}");
                let tag = head.e_tag().unwrap_or_default().trim_matches('"');
                let length = head.content_length().and_then(|l| u64::try_from(l).ok());
                Ok(length == Some(bytes) && tag.ends_with(&made_of))
            }
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 404) => Ok(false),
            Err(e) => Err(self.failed("look at", key, e)),
        }
    }
}

//! The objects of the in-process S3 server.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    etag: String,
    modified: SystemTime,
}

#[derive(Debug)]
struct Open {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, Bytes>,
}

#[derive(Debug, Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Stored>>,
    uploads: BTreeMap<String, Open>,
    next_upload: u64,
}

/// Buckets and uploads under one lock: whatever S3 promises to be atomic is.
#[derive(Debug, Default, Clone)]
pub(super) struct Backend(Arc<Mutex<State>>);

fn store(bytes: Bytes) -> Stored {
    let etag = hex::encode(&Sha256::digest(&bytes)[..16]);
    Stored {
        bytes,
        etag,
        modified: SystemTime::now(),
    }
}

async fn read(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut bytes = BytesMut::new();
    if let Some(mut body) = body {
        while let Some(part) = body
            .try_next()
            .await
            .map_err(|e| s3_error!(IncompleteBody, "{e}"))?
        {
            bytes.extend_from_slice(&part);
        }
    }
    Ok(bytes.freeze())
}

impl Backend {
    pub(super) fn new(buckets: &[&str]) -> Backend {
        let backend = Backend::default();
        for bucket in buckets {
            backend
                .state()
                .buckets
                .insert((*bucket).to_owned(), BTreeMap::new());
        }
        backend
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn objects(&self, bucket: &str, prefix: &str) -> Vec<(String, Bytes)> {
        let state = self.state();
        let Some(objects) = state.buckets.get(bucket) else {
            return Vec::new();
        };
        objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| (key.clone(), stored.bytes.clone()))
            .collect()
    }

    /// Puts or replaces an object behind everybody's back.
    pub(super) fn overwrite(&self, bucket: &str, key: &str, bytes: Bytes) {
        if let Some(objects) = self.state().buckets.get_mut(bucket) {
            objects.insert(key.to_owned(), store(bytes));
        }
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Writes an object if its conditions hold; both checks and the write are one step.
    fn put(
        &self,
        bucket: &str,
        key: &str,
        bytes: Bytes,
        if_none_match: Option<&IfNoneMatch>,
        if_match: Option<&IfMatch>,
    ) -> S3Result<String> {
        let mut state = self.state();
        let objects = bucket_of(&mut state, bucket)?;
        let present = objects.get(key);
        match (if_none_match, present) {
            (Some(ETagCondition::Any), Some(_)) => {
                return Err(s3_error!(PreconditionFailed, "the object exists"));
            }
            (Some(ETagCondition::ETag(tag)), Some(stored)) if tag.value() == stored.etag => {
                return Err(s3_error!(PreconditionFailed, "the object has this tag"));
            }
            _ => {}
        }
        match (if_match, present) {
            (None, _) => {}
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(ETagCondition::ETag(tag)), Some(stored)) if tag.value() != stored.etag => {
                return Err(s3_error!(PreconditionFailed, "the object has another tag"));
            }
            _ => {}
        }
        let stored = store(bytes);
        let etag = stored.etag.clone();
        objects.insert(key.to_owned(), stored);
        Ok(etag)
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Stored> {
        let mut state = self.state();
        bucket_of(&mut state, bucket)?
            .get(key)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchKey))
    }
}

fn bucket_of<'a>(state: &'a mut State, bucket: &str) -> S3Result<&'a mut BTreeMap<String, Stored>> {
    state
        .buckets
        .get_mut(bucket)
        .ok_or_else(|| s3_error!(NoSuchBucket))
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.state()
            .buckets
            .entry(request.input.bucket.to_string())
            .or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        bucket_of(&mut self.state(), &request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let bytes = read(input.body).await?;
        let etag = self.put(
            &input.bucket,
            &input.key,
            bytes,
            input.if_none_match.as_ref(),
            input.if_match.as_ref(),
        )?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            ..PutObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let stored = self.find(&input.bucket, &input.key)?;
        let total = stored.bytes.len() as u64;
        let (bytes, content_range) = match input.range {
            None => (stored.bytes, None),
            Some(range) => {
                let range = range.check(total)?;
                let text = format!("bytes {}-{}/{total}", range.start, range.end - 1);
                // Bounded by the length, which was a usize.
                (
                    stored.bytes.slice(range.start as usize..range.end as usize),
                    Some(text),
                )
            }
        };
        let length = bytes.len() as i64;
        let body = s3s::Body::from(bytes);
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            body: Some(StreamingBlob::from(body)),
            content_length: Some(length),
            content_range,
            e_tag: Some(ETag::Strong(stored.etag)),
            last_modified: Some(stored.modified.into()),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let stored = self.find(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(stored.bytes.len() as i64),
            e_tag: Some(ETag::Strong(stored.etag)),
            last_modified: Some(stored.modified.into()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        bucket_of(&mut self.state(), &request.input.bucket)?.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut state = self.state();
        let objects = bucket_of(&mut state, &request.input.bucket)?;
        let deleted = request
            .input
            .delete
            .objects
            .into_iter()
            .map(|o| {
                objects.remove(&o.key);
                DeletedObject {
                    key: Some(o.key),
                    ..DeletedObject::default()
                }
            })
            .collect();
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let mut state = self.state();
        let objects = bucket_of(&mut state, &input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let limit = input.max_keys.unwrap_or(1000).clamp(0, 1000) as usize;
        // The token is the last key or common prefix that was given out.
        let token = input
            .continuation_token
            .clone()
            .or_else(|| input.start_after.clone());
        let after = token.unwrap_or_default();
        let mut contents = Vec::new();
        let mut common = BTreeSet::new();
        let mut last = None;
        let mut truncated = false;
        let from = if after.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(after.as_str())
        };
        for (key, stored) in objects.range::<str, _>((from, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(&prefix) else {
                continue;
            };
            let group = input
                .delimiter
                .as_deref()
                .filter(|d| !d.is_empty())
                .and_then(|d| {
                    rest.find(d)
                        .map(|at| format!("{prefix}{}", &rest[..at + d.len()]))
                });
            if group
                .as_ref()
                .is_some_and(|g| common.contains(g) || after.starts_with(g.as_str()))
            {
                continue;
            }
            if contents.len() + common.len() == limit {
                truncated = true;
                break;
            }
            match group {
                Some(group) => {
                    last = Some(group.clone());
                    common.insert(group);
                }
                None => {
                    last = Some(key.clone());
                    contents.push(Object {
                        key: Some(key.clone()),
                        size: Some(stored.bytes.len() as i64),
                        e_tag: Some(ETag::Strong(stored.etag.clone())),
                        last_modified: Some(stored.modified.into()),
                        ..Object::default()
                    });
                }
            }
        }
        let count = contents.len() + common.len();
        let prefixes = common
            .into_iter()
            .map(|p| CommonPrefix { prefix: Some(p) })
            .collect::<Vec<_>>();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: Some(limit as i32),
            key_count: Some(count as i32),
            is_truncated: Some(truncated),
            next_continuation_token: if truncated { last } else { None },
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let mut state = self.state();
        bucket_of(&mut state, &input.bucket)?;
        state.next_upload += 1;
        let id = format!("upload-{:08}", state.next_upload);
        let open = Open {
            bucket: input.bucket.to_string(),
            key: input.key.clone(),
            parts: BTreeMap::new(),
        };
        state.uploads.insert(id.clone(), open);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let bytes = read(input.body).await?;
        let etag = store(bytes.clone()).etag;
        let mut state = self.state();
        let open = state
            .uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload))?;
        open.parts.insert(input.part_number, bytes);
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let mut whole = BytesMut::new();
        {
            let state = self.state();
            let open = state
                .uploads
                .get(&input.upload_id)
                .ok_or_else(|| s3_error!(NoSuchUpload))?;
            let wanted = input
                .multipart_upload
                .and_then(|m| m.parts)
                .unwrap_or_default();
            for (i, part) in wanted.iter().enumerate() {
                let number = part.part_number.unwrap_or_default();
                let bytes = open
                    .parts
                    .get(&number)
                    .ok_or_else(|| s3_error!(InvalidPart))?;
                // As on S3: only the last part may be small.
                if i + 1 < wanted.len() && bytes.len() < 5 << 20 {
                    return Err(s3_error!(EntityTooSmall));
                }
                whole.extend_from_slice(bytes);
            }
        }
        let etag = self.put(
            &input.bucket,
            &input.key,
            whole.freeze(),
            input.if_none_match.as_ref(),
            input.if_match.as_ref(),
        )?;
        self.state().uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        match self.state().uploads.remove(&request.input.upload_id) {
            Some(_) => Ok(S3Response::new(AbortMultipartUploadOutput::default())),
            None => Err(s3_error!(NoSuchUpload)),
        }
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let state = self.state();
        let uploads = state
            .uploads
            .iter()
            .filter(|(_, open)| {
                open.bucket == input.bucket.as_str() && open.key.starts_with(&prefix)
            })
            .map(|(id, open)| MultipartUpload {
                key: Some(open.key.clone()),
                upload_id: Some(id.clone()),
                ..MultipartUpload::default()
            })
            .collect();
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            is_truncated: Some(false),
            uploads: Some(uploads),
            ..ListMultipartUploadsOutput::default()
        }))
    }
}

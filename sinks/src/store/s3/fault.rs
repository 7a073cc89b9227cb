//! What an answer of S3 means: retry, or stop and say what a person must do.
//!
//! Codes are those of the S3 API reference, "Error responses".

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use caudal_model::{Error, Kind};
use std::error::Error as StdError;

/// The service's code for an error, if it answered.
pub(super) fn code_of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    error
        .as_service_error()
        .and_then(ProvideErrorMetadata::code)
}

/// Whether the refusal is of what may be another thing by the next request: credentials,
/// which are rotated, and the clock.
pub(super) fn may_pass(error: &Error) -> bool {
    const CODES: [&str; 7] = [
        "ExpiredToken",
        "TokenRefreshRequired",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "RequestTimeTooSkewed",
        NO_CREDENTIALS,
    ];
    let text = error.to_string();
    CODES.iter().any(|code| text.contains(code))
}

const NO_CREDENTIALS: &str = "no usable AWS credentials";

/// The error of a request that did not succeed.
pub(super) fn store_error<E>(doing: String, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let status = error.raw_response().map(|r| r.status().as_u16());
    if let Some(service) = error.as_service_error() {
        return by_code(doing, status, service.code(), service.message());
    }
    let mut text = String::new();
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(c) = cause {
        text.push_str(&format!(": {c}"));
        cause = c.source();
    }
    let lower = text.to_lowercase();
    if lower.contains("credentials") || lower.contains("no providers in chain") {
        return Error::fatal(
            Kind::Prerequisite,
            format!("{doing}: {NO_CREDENTIALS}{text}"),
        )
        .hint(
            "give the agent a role (ECS task role, EC2 instance profile), or set \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        );
    }
    if lower.contains("region must be set") || lower.contains("missing region") {
        return Error::fatal(Kind::Prerequisite, format!("{doing}: no region is known"))
            .hint("set sink.region or AWS_REGION");
    }
    Error::retryable(Kind::Store, format!("{doing}{text}"))
}

/// The error of an answer.
pub(super) fn by_code(
    doing: String,
    status: Option<u16>,
    code: Option<&str>,
    message: Option<&str>,
) -> Error {
    let hint = match (code.unwrap_or_default(), status) {
        ("NoSuchBucket", _) => "make the bucket, or correct sink.url",
        ("ExpiredToken" | "ExpiredTokenException" | "RequestTimeout" | "SlowDown", _) => "",
        ("RequestTimeTooSkewed", _) => "set this machine's clock (NTP)",
        (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "NotSignedUp"
            | "AccountProblem"
            | "InvalidSecurity",
            _,
        ) => "correct the credentials that the agent runs with",
        (
            "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException",
            _,
        )
        | (_, Some(301)) => "set sink.region to the bucket's region",
        ("NotImplemented" | "MethodNotAllowed", _) | (_, Some(501)) => {
            "this server lacks a part of S3 that caudal needs: conditional PUT (If-None-Match: *), \
             multipart uploads, ListObjectsV2"
        }
        ("InvalidBucketName" | "KeyTooLongError", _) => "correct sink.url",
        ("KMS.NotFoundException" | "KMS.DisabledException" | "KMS.KMSInvalidStateException", _) => {
            "correct sink.sse_kms_key_id, or enable that key"
        }
        ("AccessDenied" | "AllAccessDisabled" | "KMS.AccessDeniedException", _)
        | (_, Some(401 | 403)) => {
            "allow s3:ListBucket and s3:ListBucketMultipartUploads on the bucket and s3:GetObject, \
             s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects \
             (kms:GenerateDataKey and kms:Decrypt with a KMS key)"
        }
        _ => "",
    };
    let answer = match (code, status) {
        (Some(code), _) => code.to_owned(),
        (None, Some(status)) => format!("status {status}"),
        (None, None) => "an error".to_owned(),
    };
    let mut text = format!("{doing}: the store answered {answer}");
    if let Some(message) = message {
        text.push_str(&format!(" ({message})"));
    }
    if hint.is_empty() {
        Error::retryable(Kind::Store, text)
    } else {
        Error::fatal(Kind::Prerequisite, text).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caudal_model::Class;

    #[test]
    fn only_what_a_person_must_mend_is_fatal() {
        let of = |status, code: &str| {
            by_code(
                "read s3://lake/x".into(),
                Some(status),
                Some(code).filter(|c| !c.is_empty()),
                None,
            )
        };
        for (status, code) in [
            (404, "NoSuchBucket"),
            (403, "AccessDenied"),
            (403, ""),
            (403, "SignatureDoesNotMatch"),
            (301, ""),
            (501, "NotImplemented"),
        ] {
            let e = of(status, code);
            assert_eq!(
                (e.class(), e.kind()),
                (Class::Fatal, Kind::Prerequisite),
                "{code}"
            );
            assert!(e.hint_text().is_some());
        }
        for (status, code) in [
            (500, "InternalError"),
            (503, "SlowDown"),
            (503, ""),
            (400, "RequestTimeout"),
            (400, "ExpiredToken"),
            (404, "NoSuchUpload"),
        ] {
            let e = of(status, code);
            assert_eq!(
                (e.class(), e.kind()),
                (Class::Retryable, Kind::Store),
                "{code}"
            );
        }
    }
}

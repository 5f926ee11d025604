//! From the SDK's errors to ours: what S3 said, what the caller can do about it, and what the user can.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::{Kind, StorageError};
use super::S3Options;
use crate::formats::error_line::joined;

type BoxError = Box<dyn Error + Send + Sync>;

/// What the user is told when S3 does not say whether a key is absent or forbidden.
const GRANT_LIST: &str = "S3 answers 403, not 404, for an absent key when the credentials lack s3:ListBucket: grant \
    s3:ListBucket on the bucket (limited to the prefix), else wal-eve cannot tell an absent file from a forbidden one.";

/// What rustls says of a certificate it does not trust, and of a server that does not speak TLS. Its error type is not
/// ours to name: the SDK chooses the version.
const TLS_REFUSALS: [&str; 2] = ["invalid peer certificate", "received corrupt message of type"];

/// A request that was refused, or that got no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server's own answer.
    Refused(Refusal),
    /// No usable answer: the kind, and why.
    Lost(Kind, BoxError),
}

/// An error answer of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
#[error("the server answered {}", self.describe())]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// S3's error code; empty if the answer had none, as with HEAD.
    pub(super) code: String,
    message: String,
    request_id: Option<String>,
    bucket_region: Option<String>,
}

impl Refusal {
    fn describe(&self) -> String {
        let mut text = self.status.to_string();
        for (separator, part) in [(" ", &self.code), (": ", &self.message)] {
            if !part.is_empty() {
                text = format!("{text}{separator}{part}");
            }
        }
        match &self.request_id {
            Some(id) => format!("{text} (request {id})"),
            None => text,
        }
    }

    /// What the caller can do about it. S3's list of error codes names them; servers of other makes send some of them.
    fn kind(&self) -> Kind {
        match (self.code.as_str(), self.status) {
            ("NoSuchKey", _) => Kind::NotFound,
            ("NoSuchBucket" | "PermanentRedirect" | "AuthorizationHeaderMalformed" | "InvalidBucketName", _)
            | ("IllegalLocationConstraintException" | "InvalidRegion" | "RequestTimeTooSkewed", _)
            | (_, 301) => Kind::Misconfigured,
            ("ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired", _)
            | ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity", _)
            | ("MissingSecurityHeader" | "AuthFailure" | "InvalidClientTokenId" | "NotSignedUp", _)
            | (_, 401) => Kind::Credentials,
            ("InvalidObjectState", _) => Kind::Denied,
            ("PreconditionFailed", _) => Kind::Changed,
            ("SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout" | "OperationAborted", _)
            | ("BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "RequestTimeTooFast", _)
            | ("ConditionalRequestConflict" | "TemporaryRedirect" | "TooManyRequests", _)
            | (_, 307 | 408 | 425 | 429 | 500 | 502..=506 | 508..=599) => Kind::Unavailable,
            (code, _) if code.contains("Throttl") => Kind::Unavailable,
            (code, 403) if !code.starts_with("KMS.") => Kind::Denied,
            // Not S3's "no such key": something else answers at this address.
            ("", 404) | (_, 501) => Kind::Misconfigured,
            _ => Kind::Other,
        }
    }

    fn is_expired(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired")
    }

    fn hint(&self, verb: &str, options: &S3Options) -> Option<String> {
        let bucket = &options.bucket;
        let hint = match (self.code.as_str(), self.status) {
            ("NoSuchBucket", _) => {
                format!("There is no bucket \"{bucket}\" at this endpoint. Are the prefix and the endpoint right?")
            }
            ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException", _)
            | (_, 301) => match self.region() {
                Some(region) => format!("Bucket \"{bucket}\" is in region \"{region}\": set AWS_REGION to it."),
                None => format!("Bucket \"{bucket}\" is in another region: set AWS_REGION to it."),
            },
            ("InvalidAccessKeyId", _) => "The access key does not exist: check AWS_ACCESS_KEY_ID.".to_owned(),
            ("SignatureDoesNotMatch", _) => {
                "The secret does not belong to the access key: check AWS_SECRET_ACCESS_KEY.".to_owned()
            }
            ("InvalidToken", _) => "The session token does not belong to the access key: check AWS_SECURITY_TOKEN \
                 (or AWS_SESSION_TOKEN), and remove it if the access key is a permanent one."
                .to_owned(),
            (_, _) if self.is_expired() && options.credentials.renewable() => {
                "The credentials have expired, and reading them again gave no newer ones.".to_owned()
            }
            (_, _) if self.is_expired() => {
                "The credentials have expired, and those given in the environment cannot be \
                 read again: start wal-eve with --envdir and keep its files fresh."
                    .to_owned()
            }
            ("RequestTimeTooSkewed", _) => {
                "This machine's clock differs from the server's by more than 15 minutes: set it right.".to_owned()
            }
            ("InvalidObjectState", _) => "The object was moved to an archive storage class: restore it first \
                 (aws s3api restore-object), then try again."
                .to_owned(),
            (_, 501) => "The server does not know something that the request asks for; servers without encryption \
                 of their own refuse server-side encryption, which WALE_S3_SSE=none switches off."
                .to_owned(),
            ("", 403 | 404 | 407) => {
                "This is not how S3 answers: does the endpoint lead to an S3 server, and is there a \
                 proxy in between?"
                    .to_owned()
            }
            _ if self.kind() == Kind::Denied => {
                format!("The credentials are good but may not do this: grant {} on the prefix.", right_to(verb))
            }
            _ => return None,
        };
        Some(hint)
    }

    /// The bucket's region, from the header that redirects carry or from `… expecting 'REGION'`.
    fn region(&self) -> Option<&str> {
        let expected = || self.message.split_once("expecting '")?.1.split('\'').next();
        self.bucket_region.as_deref().or_else(expected)
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        match &error {
            SdkError::ServiceError(service) => {
                let response = service.raw();
                let header = |name: &str| response.headers().get(name).map(str::to_owned);
                Self::Refused(Refusal {
                    status: response.status().as_u16(),
                    code: service.err().code().unwrap_or_default().to_owned(),
                    message: service.err().message().unwrap_or_default().to_owned(),
                    request_id: header("x-amz-request-id"),
                    bucket_region: header("x-amz-bucket-region"),
                })
            }
            _ => Self::lost(error),
        }
    }
}

impl Failure {
    fn lost<E: Error + Send + Sync + 'static>(error: SdkError<E, HttpResponse>) -> Self {
        use CredentialsError::{CredentialsNotLoaded, InvalidConfiguration};
        let kind = match (&error, find::<CredentialsError>(&error)) {
            (_, Some(CredentialsNotLoaded(_) | InvalidConfiguration(_))) => Kind::Credentials,
            // an outage of the service that gives them says nothing about them
            (_, Some(failed)) => {
                let source = format!("the provider of the credentials failed: {}", joined(failed));
                return Self::Lost(Kind::Unavailable, source.into());
            }
            (SdkError::ConstructionFailure(_), None) => Kind::Other,
            _ if TLS_REFUSALS.iter().any(|text| joined(&error).contains(text)) => Kind::Misconfigured,
            _ => Kind::Unavailable,
        };
        Self::Lost(kind, error.into())
    }

    /// An upload of which the server took nothing any more.
    pub(super) fn stalled(timeout: Duration) -> Self {
        Self::Lost(Kind::Unavailable, format!("the server took no byte in {timeout:?}").into())
    }

    /// The server's answer, if there was one.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Lost(..) => None,
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.refusal().map(|refusal| refusal.status)
    }

    pub(super) fn has_code(&self, code: &str) -> bool {
        self.refusal().is_some_and(|refusal| refusal.code == code)
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Lost(kind, _) => *kind,
        }
    }

    /// The error for the caller.
    pub(super) fn into_error(self, verb: &'static str, url: String, options: &S3Options) -> StorageError {
        let kind = self.kind();
        match self {
            Self::Refused(refusal) => {
                let (expired, hint) =
                    (refusal.is_expired() && options.credentials.renewable(), refusal.hint(verb, options));
                let error = StorageError::new(verb, url, kind, refusal);
                let error = if expired { error.with_expired_credentials() } else { error };
                match hint {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
            Self::Lost(_, source) => {
                let error = StorageError::new(verb, url, kind, source);
                // there was no answer, so it was not the server that refused them
                let error = if kind == Kind::Credentials { error.with_missing_credentials() } else { error };
                match lost_hint(kind, &error.cause(), options) {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
        }
    }

    /// The error when neither the object nor a listing may be read.
    pub(super) fn into_ambiguous(self, verb: &'static str, url: String, options: &S3Options) -> StorageError {
        self.into_error(verb, url, options).with_hint(GRANT_LIST)
    }
}

fn lost_hint(kind: Kind, cause: &str, options: &S3Options) -> Option<String> {
    let server = options.endpoint.as_ref().map_or("AWS".to_owned(), |endpoint| format!("\"{endpoint}\""));
    match kind {
        Kind::Credentials => Some(
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, put them into the --envdir directory, or use \
             --aws-instance-profile on EC2."
                .to_owned(),
        ),
        Kind::Misconfigured => Some(format!(
            "{server} does not speak TLS, or its certificate is not trusted: check the endpoint and this \
                machine's CA certificates."
        )),
        _ if cause.contains("dns error") => Some(format!(
            "The name of {server}, or of a proxy on the way, was not found: check the endpoint, the region, the proxy \
                 and this machine's DNS."
        )),
        _ => None,
    }
}

/// The right that an operation takes, by its verb.
fn right_to(verb: &str) -> &'static str {
    match verb {
        "get" | "look up" => "s3:GetObject",
        "list" => "s3:ListBucket",
        "delete" => "s3:DeleteObject",
        "abort upload of" => "s3:AbortMultipartUpload",
        _ => "s3:PutObject (and kms:GenerateDataKey for a key of one's own)",
    }
}

/// An error of type `T` among an error's causes.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::Credentials;
    use super::*;

    fn refusal(status: u16, code: &str, message: &str) -> Refusal {
        Refusal { status, code: code.into(), message: message.into(), ..Refusal::default() }
    }

    fn error(refusal: Refusal, credentials: Credentials) -> StorageError {
        let options = S3Options { credentials, ..S3Options::new("b", None) };
        Failure::Refused(refusal).into_error("get", "s3://b/k".into(), &options)
    }

    #[test]
    fn every_answer_has_a_kind() {
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "NoSuchBucket", Kind::Misconfigured),
            (404, "", Kind::Misconfigured),
            (301, "PermanentRedirect", Kind::Misconfigured),
            (301, "", Kind::Misconfigured),
            (400, "AuthorizationHeaderMalformed", Kind::Misconfigured),
            (403, "RequestTimeTooSkewed", Kind::Misconfigured),
            (403, "InvalidAccessKeyId", Kind::Credentials),
            (403, "SignatureDoesNotMatch", Kind::Credentials),
            (400, "ExpiredToken", Kind::Credentials),
            (400, "InvalidToken", Kind::Credentials),
            (403, "AccessDenied", Kind::Denied),
            (403, "", Kind::Denied),
            (403, "InvalidObjectState", Kind::Denied),
            (412, "PreconditionFailed", Kind::Changed),
            (503, "SlowDown", Kind::Unavailable),
            (500, "InternalError", Kind::Unavailable),
            (200, "InternalError", Kind::Unavailable),
            (502, "", Kind::Unavailable),
            (429, "", Kind::Unavailable),
            (400, "RequestTimeout", Kind::Unavailable),
            (400, "BadDigest", Kind::Unavailable),
            (409, "ConditionalRequestConflict", Kind::Unavailable),
            (400, "KMS.ThrottlingException", Kind::Unavailable),
            (400, "KMS.DisabledException", Kind::Other),
            (501, "NotImplemented", Kind::Misconfigured),
            (400, "InvalidRequest", Kind::Other),
            (507, "", Kind::Other),
        ] {
            assert_eq!(refusal(status, code, "").kind(), kind, "{status} {code}");
        }
    }

    #[test]
    fn a_wrong_region_names_the_right_one() {
        let redirect = Refusal { bucket_region: Some("eu-west-1".into()), ..refusal(301, "PermanentRedirect", "") };
        let malformed = "The authorization header is malformed; the region 'a' is wrong; expecting 'eu-west-1'";
        for refusal in [redirect, refusal(400, "AuthorizationHeaderMalformed", malformed)] {
            let error = error(refusal, Credentials::Chain);
            assert_eq!(error.hint(), Some("Bucket \"b\" is in region \"eu-west-1\": set AWS_REGION to it."));
        }
    }

    #[test]
    fn expiry_is_worth_waiting_only_for_credentials_that_can_be_renewed() {
        let expired = || refusal(400, "ExpiredToken", "");
        assert!(error(expired(), Credentials::EnvDir("/e".into())).has_expired_credentials());
        let given = Credentials::Static {
            access_key_id: "k".into(),
            secret_access_key: "s".into(),
            session_token: Some("t".into()),
        };
        assert!(!error(expired(), given).has_expired_credentials());
    }

    #[test]
    fn a_provider_that_fails_is_an_outage_and_one_that_finds_nothing_is_not() {
        type Refused = aws_sdk_s3::operation::head_object::HeadObjectError;
        let options = S3Options::new("b", None);
        let explained = |failed: CredentialsError| {
            let failed = SdkError::<Refused, HttpResponse>::construction_failure(failed);
            Failure::from(failed).into_error("get", "s3://b/k".into(), &options)
        };
        for outage in [
            CredentialsError::provider_error("the metadata service answered 503"),
            CredentialsError::provider_timed_out(Duration::from_secs(5)),
        ] {
            let error = explained(outage);
            assert_eq!((error.kind(), error.lacks_credentials()), (Kind::Unavailable, false));
            assert!(error.cause().starts_with("the provider of the credentials failed: "), "{}", error.cause());
        }
        for missing in [CredentialsError::not_loaded("none"), CredentialsError::invalid_configuration("nonsense")] {
            let error = explained(missing);
            assert_eq!((error.kind(), error.lacks_credentials()), (Kind::Credentials, true));
        }
    }

    #[test]
    fn an_answer_reads_as_one_line() {
        let refusal = Refusal { request_id: Some("1F".into()), ..refusal(403, "AccessDenied", "Access Denied") };
        assert_eq!(refusal.to_string(), "the server answered 403 AccessDenied: Access Denied (request 1F)");
        assert_eq!(Refusal { status: 403, ..Refusal::default() }.to_string(), "the server answered 403");
    }
}

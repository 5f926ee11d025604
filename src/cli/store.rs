//! Which archive the arguments and the environment mean (`spec/wal-e-format.md` §1.1, §8.1, §8.3, §8.4).

use std::num::NonZeroUsize;

use super::args::GlobalArgs;
use super::envdir::SOURCE_VARIABLE;
use super::environment::Environment;
use super::exit::Failure;
use crate::commands::archive::Archive;
use crate::formats::key::Layout;
use crate::formats::prefix_url::{PrefixUrl, PrefixUrlError, Scheme};
use crate::storage::file::FileStore;
use crate::storage::retry::RetryPolicy;
use crate::storage::s3::{ConditionalPut, Credentials, Endpoint, EndpointError, S3Options, S3Store, Sse};
use crate::storage::{self, Store as _};

type Result<T> = std::result::Result<T, Failure>;

/// The archive's place, told without asking any store.
pub(super) struct ArchiveConfig {
    prefix: PrefixUrl,
    s3: Option<S3Options>,
}

impl ArchiveConfig {
    pub(super) fn new(args: &GlobalArgs, environment: &Environment) -> Result<Self> {
        if args.gpg_key_id.as_ref().is_some_and(|id| !id.is_empty()) || environment.is_set("WALE_GPG_KEY_ID") {
            return Err(Failure::Usage(
                "GPG encryption is not supported".into(),
                Some("Unset WALE_GPG_KEY_ID and --gpg-key-id, and let the store encrypt (WALE_S3_SSE), or stay with WAL-E for this archive.".into()),
            ));
        }
        let prefix = prefix(args, environment)?;
        let s3 = match prefix.scheme() {
            Scheme::S3 => Some(s3_options(&prefix, args, environment)?),
            Scheme::File => None,
        };
        Ok(Self { prefix, s3 })
    }

    /// Whether the archive is a local directory, which WAL-E lists in another way.
    pub(super) fn is_file(&self) -> bool {
        self.s3.is_none()
    }

    pub(super) fn layout(&self) -> Layout {
        match self.prefix.scheme() {
            Scheme::S3 => Layout::new(self.prefix.key_prefix()),
            Scheme::File => Layout::new(""),
        }
    }

    /// The whole address of the archived WAL file `file_name`, as the opened store would name it.
    pub(super) fn wal_url(&self, file_name: &str) -> String {
        self.url(&self.layout().wal(file_name))
    }

    fn url(&self, key: &str) -> String {
        match &self.s3 {
            Some(options) => S3Store::new(options.clone()).url(key),
            None => FileStore::new(self.prefix.directory().into()).url(key),
        }
    }

    /// The whole address of the archive's WAL, and of the server where that is not AWS.
    pub(super) fn wal_directory_url(&self) -> String {
        format!("{} {}", self.url(&self.layout().wal_directory()), self.endpoint()).trim_end().to_owned()
    }

    /// The S3 server that was chosen instead of AWS, if one was.
    pub(super) fn endpoint(&self) -> String {
        let endpoint = self.s3.as_ref().and_then(|options| options.endpoint.as_ref());
        endpoint.map(ToString::to_string).unwrap_or_default()
    }

    pub(super) fn open(self, policy: RetryPolicy, concurrency: NonZeroUsize) -> Archive {
        let layout = self.layout();
        let store = match self.s3 {
            Some(options) => storage::wrap(S3Store::new(options), policy, concurrency),
            None => storage::wrap(FileStore::new(self.prefix.directory().into()), policy, concurrency),
        };
        Archive { store, layout }
    }
}

/// The first that is set: flags, then environment, each in WAL-E's order.
fn prefix(args: &GlobalArgs, environment: &Environment) -> Result<PrefixUrl> {
    let given = |flag: &Option<String>| flag.clone().filter(|url| !url.is_empty());
    let url = [&args.file_prefix, &args.gs_prefix, &args.s3_prefix, &args.wabs_prefix]
        .into_iter()
        .find_map(given)
        .or_else(|| {
            let names = ["WALE_FILE_PREFIX", "WALE_GS_PREFIX", "WALE_S3_PREFIX", "WALE_SWIFT_PREFIX", "WALE_WABS_PREFIX"];
            names.into_iter().find_map(|name| environment.text(name))
        })
        .ok_or_else(|| {
            Failure::Usage(
                "no storage prefix defined".into(),
                Some("Set WALE_S3_PREFIX to s3://bucket/path or WALE_FILE_PREFIX to file://localhost/path, or use --s3-prefix or --file-prefix.".into()),
            )
        })?;
    url.parse().map_err(|failed: PrefixUrlError| {
        let hint = match failed {
            PrefixUrlError::UnsupportedScheme(_) => "wal-eve reads and writes s3:// and file:// archives. Copy the archive to one of them, or stay with WAL-E for this one.",
            PrefixUrlError::ForbiddenCharacter(..) => "WAL-E cuts the prefix there, so that every object would get the same name.",
            _ => "A prefix looks like s3://bucket/path or file://localhost/path.",
        };
        Failure::Usage(failed.to_string(), Some(hint.into()))
    })
}

fn s3_options(prefix: &PrefixUrl, args: &GlobalArgs, environment: &Environment) -> Result<S3Options> {
    let endpoint = endpoint(environment)?;
    let mut options = S3Options::new(prefix.bucket(), endpoint);
    options.region = environment.text("AWS_REGION").or_else(|| environment.text("AWS_DEFAULT_REGION"));
    options.storage_class = environment.text("WALE_S3_STORAGE_CLASS");
    options.sse = sse(environment)?;
    if environment.boolean("WALE_S3_TRUST_CONDITIONAL_PUT").map_err(Failure::usage)? {
        options.conditional_put = ConditionalPut::Enforced;
    }
    options.credentials = credentials(args, environment)?;
    Ok(options)
}

fn endpoint(environment: &Environment) -> Result<Option<Endpoint>> {
    let unusable = |name: &str, failed: &EndpointError| {
        let hint = match name {
            "WALE_S3_ENDPOINT" => {
                "It looks like https+path://host:port, with path, virtualhost or subdomain after the plus sign, and nothing after the port."
            }
            _ => "It looks like https://host:port.",
        };
        Failure::Usage(format!("{name} cannot be used: {failed}"), Some(hint.into()))
    };
    if let Some(text) = environment.text("WALE_S3_ENDPOINT") {
        return text.parse().map(Some).map_err(|failed: EndpointError| unusable("WALE_S3_ENDPOINT", &failed));
    }
    for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"] {
        if let Some(text) = environment.text(name) {
            return Endpoint::from_url(&text).map(Some).map_err(|failed| unusable(name, &failed));
        }
    }
    Ok(None)
}

/// `AES256` as WAL-E sends it, unless the environment says otherwise.
fn sse(environment: &Environment) -> Result<Sse> {
    match environment.text("WALE_S3_SSE").as_deref() {
        None | Some("AES256") => Ok(Sse::Aes256),
        Some("aws:kms") => Ok(Sse::Kms { key_id: environment.text("WALE_S3_SSE_KMS_ID") }),
        Some("none") => Ok(Sse::Off),
        Some(other) => Err(Failure::Usage(
            format!("WALE_S3_SSE is \"{other}\""),
            Some("It should be AES256, aws:kms (with WALE_S3_SSE_KMS_ID for a key of your own) or none.".into()),
        )),
    }
}

fn credentials(args: &GlobalArgs, environment: &Environment) -> Result<Credentials> {
    let instance_profile = environment.boolean("AWS_INSTANCE_PROFILE").map_err(Failure::usage)?;
    if args.aws_instance_profile || instance_profile {
        return Ok(Credentials::InstanceProfile);
    }
    if let Some(directory) = environment.path(SOURCE_VARIABLE)
        && args.aws_access_key_id.is_none()
        && directory.join("AWS_ACCESS_KEY_ID").exists()
    {
        return Ok(Credentials::EnvDir(directory));
    }
    let identity = args.aws_access_key_id.clone().or_else(|| environment.text("AWS_ACCESS_KEY_ID"));
    let Some(access_key_id) = identity else { return Ok(Credentials::Chain) };
    let secret_access_key = environment.text("AWS_SECRET_ACCESS_KEY").ok_or_else(|| {
        Failure::Usage(
            "there is an AWS access key's identity but no secret key".into(),
            Some("Set AWS_SECRET_ACCESS_KEY too.".into()),
        )
    })?;
    let session_token = environment.text("AWS_SECURITY_TOKEN").or_else(|| environment.text("AWS_SESSION_TOKEN"));
    Ok(Credentials::Static { access_key_id, secret_access_key, session_token })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::Cli;
    use super::*;

    fn config(flags: &str, environment: Environment) -> Result<ArchiveConfig> {
        let line = format!("wal-e {flags} version");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        ArchiveConfig::new(&cli.global, &environment)
    }

    fn prefix_of(flags: &str, environment: Environment) -> String {
        config(flags, environment).ok().unwrap().prefix.to_string()
    }

    #[test]
    fn flags_come_before_the_environment_and_empty_is_unset() {
        let environment = || Environment::from([("WALE_S3_PREFIX", "s3://env/p"), ("WALE_FILE_PREFIX", "")]);
        assert_eq!(prefix_of("", environment()), "s3://env/p");
        assert_eq!(prefix_of("--s3-prefix s3://flag/p/", environment()), "s3://flag/p");
        assert_eq!(prefix_of("--s3-prefix=", environment()), "s3://env/p");
        let both = Environment::from([("WALE_S3_PREFIX", "s3://env/p"), ("WALE_FILE_PREFIX", "file://localhost/a")]);
        assert_eq!(prefix_of("", both), "file://localhost/a");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_and_not_ignored() {
        for (name, value) in [
            ("WALE_GPG_KEY_ID", ""),
            ("WALE_GPG_KEY_ID", "ABC"),
            ("WALE_S3_SSE", "rot13"),
            ("WALE_S3_ENDPOINT", "https+path://h/x"),
            ("WALE_S3_ENDPOINT", "nope+path://localhost:8888"),
            ("AWS_INSTANCE_PROFILE", "maybe"),
            ("AWS_ACCESS_KEY_ID", "key-without-secret"),
            ("WALE_GS_PREFIX", "gs://b/p"),
        ] {
            let environment = Environment::from([("WALE_S3_PREFIX", "s3://b/p"), (name, value)]);
            assert!(config("", environment).is_err(), "accepted {name}={value}");
        }
        assert!(config("", Environment::default()).is_err(), "no prefix");
        assert!(config("--gs-prefix gs://b/p", Environment::default()).is_err());
    }

    #[test]
    fn both_names_of_the_session_token_are_read() {
        for name in ["AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"] {
            let environment = Environment::from([
                ("WALE_S3_PREFIX", "s3://b/p"),
                ("AWS_ACCESS_KEY_ID", "k"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                (name, "t"),
            ]);
            let options = config("", environment).ok().unwrap().s3.unwrap();
            assert!(
                matches!(options.credentials, Credentials::Static { session_token: Some(token), .. } if token == "t")
            );
        }
    }

    #[test]
    fn keys_of_a_local_archive_are_relative_to_its_directory() {
        let file = config("--file-prefix file://localhost/srv/a/", Environment::default()).ok().unwrap();
        assert!(file.is_file());
        assert_eq!(file.layout().wal("x"), "wal_005/x.lzo");
    }
}

//! Who signs requests, and where that is read from again when it has changed.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::Region;

use super::service_client::ServiceClient;

/// Where credentials come from.
#[derive(Clone)]
pub enum Credentials {
    /// The SDK's own chain: environment, profile files, web identity, container, instance.
    Chain,
    /// These, which nothing can renew.
    Static {
        /// `AWS_ACCESS_KEY_ID`.
        access_key_id: String,
        /// `AWS_SECRET_ACCESS_KEY`.
        secret_access_key: String,
        /// `AWS_SECURITY_TOKEN` or `AWS_SESSION_TOKEN`.
        session_token: Option<String>,
    },
    /// The files of an `envdir` directory, read at the first request and at each renewal: whoever rotates credentials
    /// rewrites them under a running command.
    EnvDir(PathBuf),
    /// The role of the EC2 instance: `--aws-instance-profile`.
    InstanceProfile,
}

impl fmt::Debug for Credentials {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain => f.write_str("Chain"),
            Self::Static { access_key_id, .. } => {
                f.debug_struct("Static").field("access_key_id", access_key_id).finish_non_exhaustive()
            }
            Self::EnvDir(path) => f.debug_tuple("EnvDir").field(path).finish(),
            Self::InstanceProfile => f.write_str("InstanceProfile"),
        }
    }
}

impl Credentials {
    /// Whether reading them again can give others.
    pub(super) fn renewable(&self) -> bool {
        !matches!(self, Self::Static { .. })
    }

    /// Whether services other than S3 may have to be asked, some of them over `https`.
    pub(super) fn asks_services(&self) -> bool {
        matches!(self, Self::Chain | Self::InstanceProfile)
    }

    /// A provider that remembers nothing of earlier ones.
    pub(super) async fn provider(&self, region: Region, services: ServiceClient) -> SharedCredentialsProvider {
        let config =
            || ProviderConfig::without_region().with_region(Some(region.clone())).with_http_client(services.clone());
        match self {
            Self::Chain => {
                let chain = DefaultCredentialsChain::builder().region(region.clone()).configure(config());
                SharedCredentialsProvider::new(chain.build().await)
            }
            Self::Static { access_key_id, secret_access_key, session_token } => {
                let token = session_token.clone();
                SharedCredentialsProvider::new(Keys::new(access_key_id, secret_access_key, token, None, "given"))
            }
            Self::EnvDir(path) => SharedCredentialsProvider::new(EnvDir(path.clone())),
            Self::InstanceProfile => {
                let provider = ImdsCredentialsProvider::builder().configure(&config()).build();
                SharedCredentialsProvider::new(provider)
            }
        }
    }
}

#[derive(Debug)]
struct EnvDir(PathBuf);

impl ProvideCredentials for EnvDir {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(read_envdir(&self.0))
    }
}

/// Reads the credentials among an envdir's files. The token is WAL-E's variable before the SDK's.
fn read_envdir(directory: &Path) -> Result<Keys, CredentialsError> {
    let read = |name: &str| {
        let path = directory.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(envdir_value(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CredentialsError::invalid_configuration(format!(
                "could not read file \"{}\": {error}",
                path.display()
            ))),
        }
    };
    let required = |name: &str| {
        let missing = || {
            CredentialsError::not_loaded(format!("there is no value in file \"{}\"", directory.join(name).display()))
        };
        read(name)?.ok_or_else(missing)
    };
    let token = match read("AWS_SECURITY_TOKEN")? {
        Some(token) => Some(token),
        None => read("AWS_SESSION_TOKEN")?,
    };
    Ok(Keys::new(required("AWS_ACCESS_KEY_ID")?, required("AWS_SECRET_ACCESS_KEY")?, token, None, "envdir"))
}

/// envdir(8): the first line without blanks at its end; an empty file unsets the variable.
fn envdir_value(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let value = text.lines().next().unwrap_or("").trim_end_matches([' ', '\t', '\r']);
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envdir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[test]
    fn an_envdir_holds_the_first_line_of_each_file() {
        let directory = envdir(&[
            ("AWS_ACCESS_KEY_ID", "key \t\nmore"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SECURITY_TOKEN", ""),
            ("AWS_SESSION_TOKEN", "token\n"),
        ]);
        let keys = read_envdir(directory.path()).unwrap();
        assert_eq!(
            (keys.access_key_id(), keys.secret_access_key(), keys.session_token()),
            ("key", "secret", Some("token"))
        );
    }

    #[test]
    fn a_missing_key_names_its_file() {
        let directory = envdir(&[("AWS_ACCESS_KEY_ID", "key")]);
        let error = read_envdir(directory.path()).unwrap_err();
        assert!(format!("{error:?}").contains("AWS_SECRET_ACCESS_KEY"), "{error:?}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials::Static {
            access_key_id: "key".into(),
            secret_access_key: "hidden".into(),
            session_token: Some("hidden".into()),
        };
        assert!(!format!("{credentials:?}").contains("hidden"));
    }
}

//! The SDK's client, made with the first request and made anew when credentials are renewed.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::endpoint::{Endpoint as ResolvedEndpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, BehaviorVersion, Config, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::bucket;
use super::{Addressing, S3Options};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept: S3 closes them after some 20 s, and a request on one closed is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Renewals closer together than this are one: many requests meet the same expiry at once.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(500);

/// The client, and what it takes to make another.
#[derive(Debug)]
pub(super) struct LazyClient {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Kept over renewals with its connections.
    http_client: Option<SharedHttpClient>,
    client: Option<Client>,
    renewed: Option<Instant>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("the region of bucket \"{bucket}\" is not known")]
pub(super) struct NoRegion {
    bucket: String,
}

impl LazyClient {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default() }
    }

    /// The current client.
    pub(super) async fn get(&self, options: &S3Options) -> Result<Client, NoRegion> {
        let mut state = self.state.lock().await;
        if let Some(client) = &state.client {
            return Ok(client.clone());
        }
        let http_client = state.http_client.get_or_insert_with(|| http_client(secure(options))).clone();
        let client = make(options, http_client).await?;
        state.client = Some(client.clone());
        Ok(client)
    }

    /// Forgets the client and with it the credentials it holds.
    pub(super) async fn renew(&self) {
        let mut state = self.state.lock().await;
        if state.renewed.is_none_or(|renewed| renewed.elapsed() >= RENEWAL_INTERVAL) {
            state.client = None;
            state.renewed = Some(Instant::now());
        }
    }
}

pub(super) fn secure(options: &S3Options) -> bool {
    options.endpoint.as_ref().is_none_or(|endpoint| endpoint.secure)
}

/// TLS and its root certificates only where it is needed: loading them takes longer than a request.
fn http_client(secure: bool) -> SharedHttpClient {
    let builder = Builder::new().pool_idle_timeout(IDLE_TIMEOUT);
    match secure {
        true => builder.tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https(),
        false => builder.build_http(),
    }
}

async fn make(options: &S3Options, http_client: SharedHttpClient) -> Result<Client, NoRegion> {
    let region = region(options).await.ok_or_else(|| NoRegion { bucket: options.bucket.clone() })?;
    let services = match options.credentials.asks_services() && !secure(options) {
        true => self::http_client(true),
        false => http_client.clone(),
    };
    let credentials = options.credentials.provider(region.clone(), services).await;
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .app_name(AppName::new("wal-eve").expect("it is a token"))
        .region(region)
        .http_client(http_client)
        .credentials_provider(credentials)
        .identity_cache(IdentityCache::lazy().build())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let by_path = bucket::needs_path_style(&options.bucket);
    let config = match &options.endpoint {
        None => config.force_path_style(by_path),
        Some(endpoint) => match endpoint.addressing {
            Addressing::Path => config.endpoint_url(endpoint.to_string()).force_path_style(true),
            // A bucket that cannot be a subdomain goes into the path after all.
            Addressing::Subdomain => {
                config.endpoint_url(endpoint.to_string()).force_path_style(!bucket::is_compatible(&options.bucket))
            }
            Addressing::VirtualHost => {
                config.endpoint_resolver(VirtualHost(endpoint.virtual_host_url(&options.bucket)))
            }
        },
    };
    Ok(Client::from_conf(config.build()))
}

/// The region to sign for.
async fn region(options: &S3Options) -> Option<Region> {
    let of_endpoint = || match &options.endpoint {
        Some(endpoint) if endpoint.is_aws() => endpoint.aws_region().map(str::to_owned),
        // What servers that have no regions take for theirs.
        Some(_) => Some("us-east-1".to_owned()),
        None => None,
    };
    match options.region.clone().or_else(of_endpoint) {
        Some(region) => Some(Region::new(region)),
        None if options.credentials.asks_services() => {
            aws_config::default_provider::region::DefaultRegionChain::builder().build().region().await
        }
        None => None,
    }
}

/// Sends everything to the one host that is the bucket.
#[derive(Debug)]
struct VirtualHost(String);

impl ResolveEndpoint for VirtualHost {
    fn resolve_endpoint<'a>(&'a self, _params: &'a Params) -> EndpointFuture<'a> {
        EndpointFuture::ready(Ok(ResolvedEndpoint::builder().url(self.0.clone()).build()))
    }
}

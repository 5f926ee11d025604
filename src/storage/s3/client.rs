//! The SDK's client, made with the first request and made anew when credentials are renewed.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::endpoint::{Endpoint as ResolvedEndpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, BehaviorVersion, Config, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Builder, Connector};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::bucket_name;
use super::service_client::ServiceClient;
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

/// Goes through the proxy that the environment names. TLS and its root certificates only where they are needed: loading
/// them takes longer than a request.
fn http_client(secure: bool) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().pool_idle_timeout(IDLE_TIMEOUT).proxy_config(proxy(secure));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        match secure {
            true => connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build(),
            false => connector.build_http(),
        }
    })
}

/// By curl's variables. WAL-E has one proxy for all, `http_proxy`, so it stands for `https` too where none is named for that.
fn proxy(secure: bool) -> ProxyConfig {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_named =
        ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(|name| variable(name).is_some());
    match variable("http_proxy") {
        Some(proxy) if secure && !is_named => {
            let proxy = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
            let except = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
            // one that is no address is ignored, as it is among curl's
            ProxyConfig::https(proxy).map_or_else(|_| ProxyConfig::disabled(), |config| config.no_proxy(except))
        }
        _ => ProxyConfig::from_env(),
    }
}

async fn make(options: &S3Options, http_client: SharedHttpClient) -> Result<Client, NoRegion> {
    let region = region(options).await.ok_or_else(|| NoRegion { bucket: options.bucket.clone() })?;
    let services = ServiceClient {
        https: if secure(options) { http_client.clone() } else { self::http_client(true) },
        http: Builder::new().build_http(),
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
    let by_path = bucket_name::needs_path_style(&options.bucket);
    let config = match &options.endpoint {
        None => config.force_path_style(by_path),
        Some(endpoint) => match endpoint.addressing {
            Addressing::Path => config.endpoint_url(endpoint.to_string()).force_path_style(true),
            // A bucket that cannot be a subdomain goes into the path after all.
            Addressing::Subdomain => {
                config.endpoint_url(endpoint.to_string()).force_path_style(!bucket_name::is_compatible(&options.bucket))
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

#[cfg(test)]
mod tests {
    use aws_sdk_s3::presigning::PresigningConfig;

    use super::super::Credentials;
    use super::*;

    fn options(bucket: &str, region: Option<&str>, endpoint: Option<&str>) -> S3Options {
        let endpoint = endpoint.map(|text| text.parse().unwrap());
        let credentials =
            Credentials::Static { access_key_id: "k".into(), secret_access_key: "s".into(), session_token: None };
        S3Options { region: region.map(str::to_owned), credentials, ..S3Options::new(bucket, endpoint) }
    }

    /// Where a request for key `p/k` would go, and the region it would be signed for.
    async fn target(options: S3Options) -> (String, String) {
        let client = LazyClient::new().get(&options).await.unwrap();
        let config = PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
        let request = client.get_object().bucket(&options.bucket).key("p/k").presigned(config).await.unwrap();
        let (url, query) = request.uri().split_once('?').unwrap();
        let scope = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential=")).unwrap();
        (url.to_owned(), scope.split("%2F").nth(2).unwrap().to_owned())
    }

    #[tokio::test]
    async fn a_bucket_is_addressed_as_its_name_and_endpoint_ask() {
        let eu = Some("eu-west-1");
        for (bucket, region, endpoint, url, signed_for) in [
            ("my-bucket", eu, None, "https://my-bucket.s3.eu-west-1.amazonaws.com/p/k", "eu-west-1"),
            ("my.bucket", eu, None, "https://s3.eu-west-1.amazonaws.com/my.bucket/p/k", "eu-west-1"),
            ("My_Bucket", eu, None, "https://s3.eu-west-1.amazonaws.com/My_Bucket/p/k", "eu-west-1"),
            ("b-b", None, Some("http+path://h:1"), "http://h:1/b-b/p/k", "us-east-1"),
            ("b-b", eu, Some("http+path://127.0.0.1:1"), "http://127.0.0.1:1/b-b/p/k", "eu-west-1"),
            ("b-b", None, Some("https+subdomain://h.example"), "https://b-b.h.example/p/k", "us-east-1"),
            ("B_b", None, Some("https+subdomain://h.example"), "https://h.example/B_b/p/k", "us-east-1"),
            ("b.example", None, Some("https+virtualhost://"), "https://b.example/p/k", "us-east-1"),
            ("b.example", None, Some("http+virtualhost://h:8080"), "http://b.example:8080/p/k", "us-east-1"),
            ("b-b", None, Some("https+path://"), "https://s3.amazonaws.com/b-b/p/k", "us-east-1"),
            (
                "b-b",
                None,
                Some("https+path://s3.eu-west-1.amazonaws.com"),
                "https://s3.eu-west-1.amazonaws.com/b-b/p/k",
                "eu-west-1",
            ),
        ] {
            let expected = (url.to_owned(), signed_for.to_owned());
            assert_eq!(target(options(bucket, region, endpoint)).await, expected, "{bucket} at {endpoint:?}");
        }
    }

    #[tokio::test]
    async fn aws_needs_a_region() {
        let error = LazyClient::new().get(&options("b-b", None, None)).await.unwrap_err();
        assert_eq!(error.to_string(), "the region of bucket \"b-b\" is not known");
    }

    #[tokio::test]
    async fn a_renewal_makes_another_client_but_many_at_once_make_one() {
        let (client, options) = (LazyClient::new(), options("b-b", Some("eu-west-1"), None));
        client.get(&options).await.unwrap();
        client.renew().await;
        assert!(client.state.lock().await.client.is_none());
        client.get(&options).await.unwrap();
        client.renew().await;
        assert!(client.state.lock().await.client.is_some());
    }
}

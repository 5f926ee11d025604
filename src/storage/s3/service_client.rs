//! The HTTP client for the services that hand out credentials.
//!
//! Over `http` they are on this machine or on its link, as the metadata of an EC2 instance and of a container are: no
//! proxy leads there, and none may see what they say. Over `https` they are AWS's, and reached as S3 is.

use aws_sdk_s3::config::{HttpClient, RuntimeComponents, SharedHttpClient};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;

/// Chooses by a request's protocol.
#[derive(Debug, Clone)]
pub(super) struct ServiceClient {
    pub(super) https: SharedHttpClient,
    /// Goes through no proxy.
    pub(super) http: SharedHttpClient,
}

impl HttpClient for ServiceClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let (client, settings, components) = (self.clone(), settings.clone(), components.clone());
        SharedHttpConnector::new(ServiceConnector { client, settings, components })
    }
}

#[derive(Debug)]
struct ServiceConnector {
    client: ServiceClient,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for ServiceConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = match request.uri().starts_with("https:") {
            true => &self.client.https,
            false => &self.client.http,
        };
        client.http_connector(&self.settings, &self.components).call(request)
    }
}

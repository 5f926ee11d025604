//! Where requests go: `WALE_S3_ENDPOINT`, whose grammar is WAL-E's (`spec/wal-e-format.md §8.4`), and plain endpoint URLs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Where the bucket's name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `host/bucket/key`.
    Path,
    /// The bucket's name is the host name: `bucket/key`.
    VirtualHost,
    /// `bucket.host/key`.
    Subdomain,
}

/// An S3 server's address. `Display` is the URL without the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` or `http`.
    pub secure: bool,
    /// Where the bucket's name goes.
    pub addressing: Addressing,
    /// None is AWS's `s3.amazonaws.com`.
    pub host: Option<String>,
    /// None is the protocol's own.
    pub port: Option<u16>,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid S3 endpoint \"{text}\": {reason}")]
pub struct EndpointError {
    text: String,
    reason: &'static str,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// `protocol+convention://[host][:port]`, and nothing after it.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let invalid = |reason| EndpointError { text: text.to_owned(), reason };
        let (scheme, authority) =
            text.split_once("://").ok_or_else(|| invalid("it must look like \"protocol+convention://host:port\""))?;
        let (protocol, convention) =
            scheme.split_once('+').ok_or_else(|| invalid("the protocol must be followed by \"+\" and a convention"))?;
        let addressing = match convention.to_ascii_lowercase().as_str() {
            "path" => Addressing::Path,
            "virtualhost" => Addressing::VirtualHost,
            "subdomain" => Addressing::Subdomain,
            _ => return Err(invalid("the convention must be \"path\", \"virtualhost\" or \"subdomain\"")),
        };
        let secure = parse_protocol(protocol).map_err(invalid)?;
        let (host, port) = parse_authority(authority).map_err(invalid)?;
        Ok(Self { secure, addressing, host, port })
    }
}

impl Endpoint {
    /// A plain URL, as in `AWS_ENDPOINT_URL`: `http[s]://host[:port][/]`. Addresses and `localhost` have no subdomains, so
    /// the bucket goes into the path there.
    pub fn from_url(text: &str) -> Result<Self, EndpointError> {
        let invalid = |reason| EndpointError { text: text.to_owned(), reason };
        let (protocol, authority) =
            text.split_once("://").ok_or_else(|| invalid("it must look like \"https://host:port\""))?;
        let secure = parse_protocol(protocol).map_err(invalid)?;
        let (host, port) = parse_authority(authority.strip_suffix('/').unwrap_or(authority)).map_err(invalid)?;
        let name = host.as_deref().ok_or_else(|| invalid("it names no host"))?;
        let local = name == "localhost" || name.starts_with('[') || name.parse::<IpAddr>().is_ok();
        let addressing = if local { Addressing::Path } else { Addressing::Subdomain };
        Ok(Self { secure, addressing, host, port })
    }

    /// Whether it is AWS's own, which is known to honour conditions and checksums.
    pub fn is_aws(&self) -> bool {
        let ours = |host: &str| host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn");
        self.host.as_deref().is_none_or(ours)
    }

    /// The region in the name of an AWS endpoint: `s3.REGION.amazonaws.com`, `s3-REGION.…`, `s3.dualstack.REGION.…`.
    pub fn aws_region(&self) -> Option<&str> {
        let host = self.host.as_deref().filter(|_| self.is_aws()).unwrap_or("s3.amazonaws.com");
        let service = host.trim_end_matches(".cn").strip_suffix(".amazonaws.com")?;
        let region = service.rsplit('.').next().unwrap_or(service);
        match region.strip_prefix("s3-").unwrap_or(region) {
            "s3" => self.is_aws().then_some("us-east-1"),
            region => Some(region),
        }
    }

    /// The URL requests go to when the bucket's name is the host.
    pub(super) fn virtual_host_url(&self, bucket: &str) -> String {
        Self { host: Some(bucket.to_owned()), ..self.clone() }.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.secure { "https" } else { "http" };
        write!(f, "{protocol}://{}", self.host.as_deref().unwrap_or("s3.amazonaws.com"))?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn parse_protocol(protocol: &str) -> Result<bool, &'static str> {
    match protocol.to_ascii_lowercase().as_str() {
        "https" => Ok(true),
        "http" => Ok(false),
        _ => Err("the protocol must be \"http\" or \"https\""),
    }
}

fn parse_authority(authority: &str) -> Result<(Option<String>, Option<u16>), &'static str> {
    if authority.contains('@') {
        return Err("a user or password has no place in it");
    }
    if authority.contains('/') {
        return Err("a path has no place in it");
    }
    if authority.contains(['?', '#']) {
        return Err("a query or fragment has no place in it");
    }
    // A colon within brackets belongs to an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = port.map(|port| match port.bytes().all(|byte| byte.is_ascii_digit()) {
        true => port.parse().map_err(|_| "the port must be a number up to 65535"),
        false => Err("the port must be a number up to 65535"),
    });
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match address {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => Err("the IPv6 address is not one"),
        None if !host.bytes().all(name) => Err("the host is not a name or address"),
        _ => Ok((Some(host.to_owned()).filter(|host| !host.is_empty()), port.transpose()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    // spec/wal-e-format.md §12, vector 34.
    #[test]
    fn endpoints_of_wal_e_are_accepted() {
        let endpoint = parsed("http+path://localhost:8888");
        assert_eq!((endpoint.secure, endpoint.addressing, endpoint.port), (false, Addressing::Path, Some(8888)));
        assert_eq!(endpoint.to_string(), "http://localhost:8888");
        let endpoint = parsed("https+virtualhost://");
        assert_eq!((endpoint.secure, endpoint.addressing, &endpoint.host), (true, Addressing::VirtualHost, &None));
        assert_eq!(endpoint.virtual_host_url("b"), "https://b");
        let endpoint = parsed("https+subdomain://h");
        assert_eq!((endpoint.addressing, endpoint.host.as_deref()), (Addressing::Subdomain, Some("h")));
        assert_eq!(parsed("http+path://[::1]:9000").to_string(), "http://[::1]:9000");
    }

    #[test]
    fn all_else_is_refused() {
        for text in [
            "nope+path://",
            "https+nope://",
            "https+path://u:p@h",
            "https+path://u@h",
            "https+path://h/x",
            "https+path://h/",
            "https+path://h?q=1",
            "https+path://h#f",
            "https+path:h",
            "https://h",
            "",
            "h:1",
            "https+path://h:x",
            "https+path://h:65536",
            "https+path://h:+1",
            "https+path://h:",
            "https+path://h h",
            "https+path://[::1",
            "https+path://[x]:1",
            "https+path://::1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "accepted {text:?}");
        }
    }

    #[test]
    fn plain_urls_keep_the_bucket_out_of_addresses() {
        for (text, addressing) in [
            ("http://localhost:9000", Addressing::Path),
            ("http://127.0.0.1", Addressing::Path),
            ("http://[::1]:9000/", Addressing::Path),
            ("https://minio.example.com/", Addressing::Subdomain),
        ] {
            assert_eq!(Endpoint::from_url(text).unwrap().addressing, addressing, "{text}");
        }
        for text in ["", "localhost:9000", "https://", "ftp://h", "https://h/path", "https+path://h"] {
            assert!(Endpoint::from_url(text).is_err(), "accepted {text:?}");
        }
    }

    #[test]
    fn only_amazon_is_aws_and_its_names_tell_the_region() {
        for (text, region) in [
            ("https+path://", Some("us-east-1")),
            ("https+path://s3.amazonaws.com", Some("us-east-1")),
            ("https+path://s3.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("https+path://s3-eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("https+path://s3.dualstack.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("https+path://s3.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
        ] {
            assert!(parsed(text).is_aws(), "{text}");
            assert_eq!(parsed(text).aws_region(), region, "{text}");
        }
        for text in ["https+path://minio", "https+path://amazonaws.com.example.org", "http+path://localhost:1"] {
            assert!(!parsed(text).is_aws(), "{text}");
        }
    }
}

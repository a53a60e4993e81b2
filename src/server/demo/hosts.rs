//! Which sites may use the page.
//!
//! A page on a loopback address can be reached by every site that the user's browser shows: the site posts to it, or has its own
//! name resolve to 127.0.0.1 (DNS rebinding) and then counts as the same origin. The first is refused by its `Origin`, the second
//! by its `Host`.

use std::net::{IpAddr, SocketAddr};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName};
use actix_web::http::uri::Authority;
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, ResponseError};

use super::errors::DemoError;
use crate::server::errors::ApiError;

/// The names under which the page may be opened.
#[derive(Debug, Clone)]
pub(in crate::server) struct Hosts {
    /// Whether only loopback names and `allowed` are accepted.
    restricted: bool,
    /// In lower case, without port.
    allowed: Vec<String>,
    /// The flag that sets `allowed`.
    flag: &'static str,
}

impl Hosts {
    /// Names of the page that listens on `address`: any, unless that is a loopback address or `allowed` has some.
    pub(in crate::server) fn new(address: SocketAddr, allowed: &[String], flag: &'static str) -> Self {
        Self {
            restricted: address.ip().is_loopback() || !allowed.is_empty(),
            allowed: allowed.iter().map(|name| name.to_ascii_lowercase()).collect(),
            flag,
        }
    }

    fn check(&self, is_read: bool, headers: &HeaderMap) -> Result<(), DemoError> {
        let foreign = DemoError::ForeignHost { flag: self.flag };
        let Some(host) = only(headers, &header::HOST).and_then(authority) else {
            return Err(foreign);
        };
        if self.restricted && !self.is_own(host.host()) {
            return Err(foreign);
        }
        if !is_read && headers.contains_key(header::ORIGIN) {
            let origin = only(headers, &header::ORIGIN);
            if !origin.is_some_and(|origin| is_origin_of(origin, &host)) {
                return Err(DemoError::ForeignOrigin);
            }
        }
        Ok(())
    }

    fn is_own(&self, host: &str) -> bool {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = address.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let host = host.to_ascii_lowercase();
        is_loopback || host == "localhost" || self.allowed.contains(&host)
    }
}

/// The value of a header that occurs once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name);
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn authority(text: &str) -> Option<Authority> {
    text.parse().ok().filter(|_| !text.contains('@'))
}

/// Whether `origin` has the name and port of `host`. The scheme may differ: a reverse proxy speaks HTTPS.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let (rest, default) = match origin.split_once("://") {
        Some(("http", rest)) => (rest, 80),
        Some(("https", rest)) => (rest, 443),
        _ => return false,
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    authority(rest)
        .is_some_and(|own| own.host().eq_ignore_ascii_case(host.host()) && port(&own) == port(host))
}

/// Middleware: refuses requests of other sites.
pub(super) async fn check_host<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(hosts) = request.app_data::<Data<Hosts>>() else {
        return Err(ApiError::Internal.into());
    };
    match hosts.check(request.method().is_safe(), request.headers()) {
        Ok(()) => Ok(next.call(request).await?.map_into_boxed_body()),
        Err(error) => Ok(request.into_response(error.error_response())),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn status(address: &str, allowed: &[&str], lines: &[(HeaderName, &'static str)]) -> u16 {
        let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
        let hosts = Hosts::new(address.parse().expect("an address"), &allowed, "--allowed-host");
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        match hosts.check(false, &headers) {
            Ok(()) => 200,
            Err(error) => error.status_code().as_u16(),
        }
    }

    #[test]
    fn loopback_takes_loopback_names_and_allowed_ones() {
        let host = |name| status("127.0.0.1:7860", &["Page.example.org"], &[(header::HOST, name)]);
        for own in [
            "localhost",
            "LOCALHOST:7860",
            "127.0.0.1:1",
            "127.3.2.1",
            "[::1]:7860",
            "page.example.org",
            "PAGE.example.org:8443",
        ] {
            assert_eq!(host(own), 200, "{own}");
        }
        for foreign in [
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "user@localhost",
            "192.0.2.1",
            "[2001:db8::1]",
            "localhost, example.org",
            "http://localhost",
            "",
        ] {
            assert_eq!(host(foreign), 403, "{foreign}");
        }
        assert_eq!(status("127.0.0.1:7860", &[], &[]), 403);
        let two = [(header::HOST, "localhost"), (header::HOST, "example.org")];
        assert_eq!(status("127.0.0.1:7860", &[], &two), 403);
    }

    #[test]
    fn other_addresses_take_any_name_unless_some_are_allowed() {
        let host = [(header::HOST, "example.org:7860")];
        assert_eq!(status("0.0.0.0:7860", &[], &host), 200);
        assert_eq!(status("[::]:7860", &[], &host), 200);
        assert_eq!(status("0.0.0.0:7860", &["page.example.org"], &host), 403);
    }

    #[test]
    fn an_origin_must_be_the_host() {
        let origin = |host, origin| {
            status(
                "0.0.0.0:7860",
                &[],
                &[(header::HOST, host), (header::ORIGIN, origin)],
            )
        };
        for (host, own) in [
            ("localhost:7860", "http://localhost:7860"),
            ("localhost", "http://localhost"),
            ("localhost:80", "http://localhost"),
            ("[::1]:7860", "http://[::1]:7860"),
            ("Example.org", "https://example.org"),
            ("example.org:443", "https://example.org"),
        ] {
            assert_eq!(origin(host, own), 200, "{own}");
        }
        for (host, foreign) in [
            ("localhost:7860", "http://localhost:8000"),
            ("localhost:7860", "http://127.0.0.1:7860"),
            ("localhost:7860", "https://example.org"),
            ("localhost:7860", "null"),
            ("localhost:7860", "http://localhost:7860@example.org"),
            ("localhost:7860", "localhost:7860"),
            ("localhost:7860", "ftp://localhost:7860"),
            ("example.org", "http://example.org:443"),
        ] {
            assert_eq!(origin(host, foreign), 403, "{foreign}");
        }
        let two = [
            (header::HOST, "localhost"),
            (header::ORIGIN, "http://localhost"),
            (header::ORIGIN, "http://example.org"),
        ];
        assert_eq!(status("0.0.0.0:7860", &[], &two), 403);
    }
}

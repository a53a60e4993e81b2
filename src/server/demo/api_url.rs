//! The address of the API that `demo_ui` forwards to.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use crate::Error;

/// `http(s)://HOST[:PORT]`.
#[derive(Debug, Clone)]
pub struct ApiUrl(Url);

impl ApiUrl {
    /// The address of a route, given by the segments of its path; `None` for a path that would be another one.
    pub fn route<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Option<Url> {
        let mut url = self.0.clone();
        let mut path = url.path_segments_mut().ok()?;
        path.clear();
        for segment in segments {
            if matches!(segment, "" | "." | "..") {
                return None;
            }
            path.push(segment);
        }
        drop(path);
        Some(url)
    }

    pub(super) fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl FromStr for ApiUrl {
    type Err = Error;

    /// # Errors
    /// [`Error::Option`]; it does not repeat `text`, which may hold a password.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::option("--api-url", reason);
        let url = Url::parse(text.trim())
            .map_err(|error| wrong(&format!("not an address such as http://127.0.0.1:8000 ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must not contain a user name or a password"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("must end after the host and port: no path, no query"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port() {
        for (text, shown) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            (" http://[::1]:8000/ ", "http://[::1]:8000"),
            ("https://Example.org", "https://example.org"),
        ] {
            assert_eq!(text.parse::<ApiUrl>().expect(text).to_string(), shown);
        }
        for (text, reason) in [
            ("", "not an address"),
            ("127.0.0.1:8000", "not an address"),
            ("localhost:8000", "http://"),
            ("ftp://localhost", "http://"),
            ("file:///etc", "http://"),
            ("http://", "not an address"),
            ("http://host:99999", "not an address"),
            ("http://user@host", "user name"),
            ("http://:hunter2@host", "password"),
            ("http://host/path", "no path"),
            ("http://host?q", "no query"),
            ("http://host#f", "no query"),
        ] {
            let error = text.parse::<ApiUrl>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(
                error.starts_with("--api-url: ") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn segments_stay_segments() {
        let api: ApiUrl = "http://localhost:8000".parse().expect("an address");
        let route = |segments: &[&str]| api.route(segments.iter().copied()).map(String::from);
        assert_eq!(
            route(&["v1", "models", "a b/../c?d#e%2f"]).expect("a route"),
            "http://localhost:8000/v1/models/a%20b%2F..%2Fc%3Fd%23e%252f"
        );
        for other in [["v1", ".."], ["v1", "."], ["v1", ""]] {
            assert_eq!(route(&other), None);
        }
    }
}

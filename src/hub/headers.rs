//! Header names of the hub, and the values that are read from a response's headers.

use reqwest::header::{HeaderMap, HeaderName};

/// Commit that a file is served from.
pub(super) const X_REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
/// Checksum of a file that the storage host serves.
pub(super) const X_LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
/// Size of a file that the storage host serves.
pub(super) const X_LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
pub(super) const X_ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
pub(super) const X_ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Returns the value of a header, if it is ASCII text.
pub(super) fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Returns an `ETag` without quotes and the mark of weak validators.
pub(super) fn unquoted(etag: String) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Returns first byte and total size of `bytes START-END/TOTAL`; the total is `None` for `*`.
pub(super) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges_are_parsed_or_rejected() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes -9/10",
            "bytes x-9/10",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}

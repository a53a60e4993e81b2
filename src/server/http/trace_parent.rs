//! The header `traceparent` of W3C Trace Context.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

pub(super) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`, as sent: `00-TRACE_ID-PARENT_ID-FLAGS`.
pub(super) struct TraceParent {
    header: HeaderValue,
    trace_id: String,
}

impl TraceParent {
    /// The one of a request; `None` if there is none, several, or anything but version 00 in lower-case digits.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACE_PARENT);
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Some(Self {
            trace_id: trace_id(value.as_bytes())?.to_owned(),
            header: value.clone(),
        })
    }

    pub(super) fn trace_id(&self) -> &str {
        &self.trace_id
    }

    pub(super) fn into_header(self) -> HeaderValue {
        self.header
    }
}

/// The trace id of a `traceparent`, if that is valid.
fn trace_id(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value).ok()?;
    let fields: Vec<&str> = text.splitn(5, '-').collect();
    let &[version, trace, parent, flags] = fields.as_slice() else {
        return None;
    };
    let is_hex = |field: &str, length: usize| {
        field.len() == length
            && field
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |field: &str, length| is_hex(field, length) && field.bytes().any(|digit| digit != b'0');
    (version == "00" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn only_the_exact_form_is_taken() {
        for flags in ["00", "01", "ff"] {
            let valid = format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
            assert_eq!(trace_id(valid.as_bytes()), Some(TRACE), "{valid}");
        }
        let upper = TRACE.to_uppercase();
        let zeros = "0".repeat(32);
        for invalid in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-x"),
            format!("01-{TRACE}-00f067aa0ba902b7-01"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{upper}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00F067AA0BA902B7-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{TRACE}0-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", &TRACE[1..]),
            format!("00-{TRACE}-00f067aa0ba902b7-1"),
            format!("00-{TRACE}-00f067aa0ba902b7-0g"),
            format!(" 00-{TRACE}-00f067aa0ba902b7-01"),
            format!("00_{TRACE}_00f067aa01a902b7_01"),
            format!("00-{}-00f067aa0ba902b7-01", "\u{e9}".repeat(16)),
        ] {
            assert_eq!(trace_id(invalid.as_bytes()), None, "{invalid}");
        }
        assert_eq!(trace_id(&[0xff; 55]), None);
    }
}

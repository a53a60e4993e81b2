//! Why a TLS connection to another server fails, where the libraries' text would not tell what to do.

use std::error::Error;
use std::{fmt, io};

use rustls::{AlertDescription, CertificateError};

/// Why a TLS connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsRefusal {
    /// The server demands a certificate of its clients.
    CertificateRequired,
    /// The server's own certificate is that of an authority.
    AuthorityAsServer,
}

impl fmt::Display for TlsRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CertificateRequired => {
                "it demands a client certificate (--tls-client-ca), and this program has none to show; \
                 `medvision health` without --url, on the server's machine, counts such a server as ready"
            }
            Self::AuthorityAsServer => {
                "its certificate is that of an authority (CA:TRUE), which is no server's; \
                 have one made with CA:FALSE, and trust the authority alone"
            }
        })
    }
}

impl TlsRefusal {
    /// The one that is among the causes of `error`.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(refusal) = cause.downcast_ref().and_then(Self::of_tls) {
                return Some(refusal);
            }
            // An I/O error hides its own cause.
            let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner),
                None => cause.source(),
            };
        }
        None
    }

    pub(super) fn of_tls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
                Some(Self::CertificateRequired)
            }
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                let is_authority = other.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity);
                is_authority.then_some(Self::AuthorityAsServer)
            }
            _ => None,
        }
    }
}

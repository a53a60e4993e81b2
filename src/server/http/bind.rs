//! Binding a port, and why it failed.

use std::io;
use std::net::TcpListener;

/// Cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {host}:{port}: {}", reason(.cause, .port_flag))]
pub struct BindError {
    /// As given.
    pub host: String,
    /// As given.
    pub port: u16,
    /// The flag that sets the port.
    pub port_flag: &'static str,
    /// Underlying I/O error, included in the text.
    pub cause: io::Error,
}

fn reason(error: &io::Error, port_flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port already in use; stop the other program or choose another port with {port_flag}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission denied (ports below 1024 are privileged); choose another port with {port_flag}"
        ),
        io::ErrorKind::AddrNotAvailable => "no such address on this machine; check --host".into(),
        _ => format!("{error}; check --host and {port_flag}"),
    }
}

/// Binds a port; connections wait until a server accepts them.
pub(in crate::server) fn bind_port(
    host: &str,
    port: u16,
    port_flag: &'static str,
) -> Result<TcpListener, BindError> {
    TcpListener::bind((host, port)).map_err(|cause| BindError {
        host: host.to_owned(),
        port,
        port_flag,
        cause,
    })
}

//! One connection: reads requests, answers them, and applies faults.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::routes::{Response, route};
use super::{Fault, Request, State};

pub(super) fn serve(
    stream: &TcpStream,
    hub: SocketAddr,
    state: &Mutex<State>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let (mut response, fault) = {
            let mut state = state.lock().unwrap();
            state.requests.push(request.clone());
            route(&request, hub, &mut state)
        };
        let mut delay = Duration::ZERO;
        let mut cut = None;
        match &fault {
            Some(Fault::Reset) => return Ok(()),
            Some(Fault::Status(status, headers)) => {
                response = Response {
                    status: *status,
                    headers: headers.clone(),
                    body: Vec::new(),
                };
            }
            Some(Fault::Truncate(bytes) | Fault::Stall(bytes)) => cut = Some(*bytes),
            Some(Fault::Slow(each)) => delay = *each,
            Some(Fault::Corrupt) => response.body.iter_mut().for_each(|byte| *byte ^= 0x55),
            _ => {}
        }
        let mut stream = stream;
        let length = response.body.len()
            + match fault {
                Some(Fault::WrongLength(more)) => more,
                _ => 0,
            };
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {length}\r\n", response.status);
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method == "HEAD" {
            continue;
        }
        let end = cut.unwrap_or(response.body.len()).min(response.body.len());
        for chunk in response.body[..end].chunks(4096) {
            stream.write_all(chunk)?;
            thread::sleep(delay);
        }
        if let Some(Fault::Stall(_)) = fault {
            while !stop.load(Ordering::SeqCst) && is_open(stream) {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if matches!(
            fault,
            Some(Fault::Truncate(_) | Fault::Stall(_) | Fault::WrongLength(_))
        ) {
            return Ok(());
        }
    }
    Ok(())
}

fn is_open(stream: &TcpStream) -> bool {
    let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
    !matches!(stream.peek(&mut [0]), Ok(0))
}

//! docker or podman, which saves and loads images.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::copy::{CHUNK, check_written, each_chunk};
use crate::error::excerpt;
use crate::fs::{FileDigest, hex};
use crate::quantize::Watch;
use crate::{Error, Result};

/// Interval of looks at a running engine.
const EVERY: Duration = Duration::from_millis(100);
/// Time for an engine to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A container engine's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEngine {
    program: String,
}

impl ContainerEngine {
    /// The engine `choice`, else the first that works of docker and podman; `None` if there is none.
    pub fn find(choice: Option<&str>) -> Option<Self> {
        let works = |program: &str| {
            let mut command = Command::new(program);
            command
                .arg("info")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let programs = choice.map_or_else(|| vec!["docker", "podman"], |choice| vec![choice]);
        let found = programs.into_iter().find(|program| works(program))?;
        Some(Self {
            program: found.to_owned(),
        })
    }

    /// Its command.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Bytes of the image `name`, about as many as its archive has.
    ///
    /// # Errors
    /// [`Error::NotFound`], if there is no such image.
    pub fn image_bytes(&self, name: &str) -> Result<u64> {
        if name.is_empty()
            || name.starts_with('-')
            || name.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            return Err(Error::option(
                "--image",
                "expected the name of an image, as in medvision:latest",
            ));
        }
        let output = self
            .command(&["image", "inspect", "--format", "{{.Size}}", name])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| self.failed(error))?;
        if !output.status.success() {
            let reason = format!(
                "{} has no such image ({}); build it (make image), name another one with --image, or leave it out with --no-image",
                self.program,
                excerpt(String::from_utf8_lossy(&output.stderr).trim())
            );
            return Err(Error::not_found(name, reason));
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap_or(0))
    }

    /// Saves the image `name` to the new file `to`.
    pub(super) fn save(&self, name: &str, to: &Path, watch: Watch<'_>) -> Result<FileDigest> {
        let io = |error| Error::io(to, error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(to)
            .map_err(io)?;
        let mut running = self.start(self.command(&["save", name]).stdin(Stdio::null()))?;
        let mut output = running.child.stdout.take();
        let (sender, receiver) = sync_channel::<io::Result<Vec<u8>>>(4);
        // Ends with the engine, whose end of the pipe it reads.
        let reader = thread::spawn(move || {
            while let Some(output) = &mut output {
                let mut chunk = vec![0; CHUNK];
                let read = output.read(&mut chunk).map(|count| chunk.truncate(count));
                let ended = chunk.is_empty() || read.is_err();
                if sender.send(read.map(|()| chunk)).is_err() || ended {
                    break;
                }
            }
        });
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        loop {
            let chunk = match receiver.recv_timeout(EVERY) {
                Ok(chunk) => chunk.map_err(io)?,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(io)?;
            bytes += chunk.len() as u64;
            watch.done(chunk.len() as u64)?;
        }
        let _ = reader.join();
        self.succeeded(running.wait(watch)?)?;
        let digest = FileDigest {
            bytes,
            sha256: hex(&hasher.finalize()),
        };
        check_written(&file, to, &digest, watch)?;
        Ok(digest)
    }

    /// Loads an image from `file`, whose digest must be `expected`; `path` is for errors. Returns what the engine printed.
    pub(super) fn load(
        &self,
        file: &File,
        path: &Path,
        expected: &FileDigest,
        watch: Watch<'_>,
    ) -> Result<String> {
        let mut running = self.start(self.command(&["load"]).stdin(Stdio::piped()))?;
        let (mut input, output) = (running.child.stdin.take(), running.child.stdout.take());
        let outcome = thread::scope(|scope| {
            let printed = scope.spawn(move || {
                let mut text = Vec::new();
                let _ = output.map(|output| output.take(1 << 16).read_to_end(&mut text));
                String::from_utf8_lossy(&text).into_owned()
            });
            let piped = scope.spawn(move || {
                let sent = match &mut input {
                    Some(input) => send(file, path, expected, input, watch),
                    None => Ok(()),
                };
                // After an error it stays open: the engine must not take its end for that of the image.
                sent.map_err(|error| (error, input))
            });
            let (mut piped, mut open) = (Some(piped), None);
            let ended = loop {
                match running.ended() {
                    Ok(None) => {}
                    Ok(Some(status)) => break Ok(status),
                    Err(error) => break Err(error),
                }
                let sent = piped
                    .take_if(|piped| piped.is_finished())
                    .map(|piped| piped.join());
                if let Some(Ok(Err((error, input)))) = sent {
                    open = input;
                    break Err(error);
                }
                if let Err(error) = watch.done(0) {
                    break Err(error);
                }
                thread::sleep(EVERY);
            };
            // On an error, too, so that no thread waits for it.
            drop(running);
            drop(open);
            ended.map(|status| (status, printed.join().unwrap_or_default()))
        });
        let (status, printed) = outcome?;
        self.succeeded(status)?;
        Ok(printed.trim().to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }

    /// Starts `command` in a process group of its own: a Ctrl-C at the terminal is this program's to handle.
    fn start(&self, command: &mut Command) -> Result<Running> {
        let child = command
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| self.failed(error))?;
        Ok(Running { child })
    }

    fn succeeded(&self, status: ExitStatus) -> Result<()> {
        match status.success() {
            true => Ok(()),
            false => Err(self.failed(io::Error::other(format!(
                "ended with {status}; its message is above"
            )))),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(&self.program, error)
    }
}

/// Writes `file` to an engine's `input`. The end is held back until the sum is known: no engine gets the whole of an image that
/// was exchanged after it was checked.
fn send(
    file: &File,
    path: &Path,
    expected: &FileDigest,
    input: &mut ChildStdin,
    watch: Watch<'_>,
) -> Result<()> {
    let (mut held, mut is_closed) = (Vec::new(), false);
    // A byte more, if there is one, tells as much as the whole of a file that grows.
    let read = each_chunk(file.take(expected.bytes + 1), path, watch, |chunk| {
        held.extend_from_slice(chunk);
        let ready = held.len().saturating_sub(CHUNK);
        is_closed = input.write_all(&held[..ready]).is_err();
        held.drain(..ready);
        match is_closed {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    });
    // The engine's exit code tells why it did not read on.
    if is_closed {
        return Ok(());
    }
    if read? != *expected {
        let reason =
            "was changed while it was loaded, and the engine did not get all of it; copy the folder again";
        return Err(Error::invalid_file(path, reason));
    }
    let _ = input.write_all(&held);
    Ok(())
}

/// A running engine; it is stopped on drop.
struct Running {
    child: Child,
}

impl Running {
    fn wait(&mut self, watch: Watch<'_>) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            watch.done(0)?;
            thread::sleep(EVERY);
        }
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.child.try_wait();
        ended.map_err(|error| Error::io("container engine", error))
    }

    /// Sends a signal to the engine and what it started.
    fn signal(&self, signal: i32) {
        let group = self.child.id().cast_signed();
        // SAFETY: plain system call. The child has not been waited for, so that the number is still its own.
        unsafe { libc::kill(-group, signal) };
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if ended(&mut self.child) {
            return;
        }
        self.signal(libc::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if ended(&mut self.child) {
                return;
            }
            thread::sleep(EVERY);
        }
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }
}

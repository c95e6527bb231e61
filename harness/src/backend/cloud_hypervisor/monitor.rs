//! Cloud Hypervisor's reports (`--event-monitor`): JSON objects, one after the other, in a FIFO.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use serde::Deserialize;

/// One report.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Report {
    /// Who reports: `vm`, `vmm`, `guest`, …
    pub source: String,
    /// What happened.
    pub event: String,
}

/// Calls a function with each report, until this is dropped or the process has ended.
#[derive(Debug)]
pub(super) struct Monitor {
    _open: OwnedFd,
}

impl Monitor {
    /// Creates the FIFO `path`, and listens on it for a process that is about to be started.
    pub fn start(path: &Path, mut report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        // That of an earlier process with the same files.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Non-blocking, or it would wait here for the process to open it.
        let flags = OFlag::O_NONBLOCK.bits();
        let fifo = File::options().read(true).custom_flags(flags).open(path)?;
        let (closed, open) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let path = path.to_owned();
        thread::Builder::new().name("ch-events".into()).spawn(move || {
            let reader = io::BufReader::new(Reader { fifo, closed });
            let reports = serde_json::Deserializer::from_reader(reader).into_iter::<Report>();
            let mut path = Some(path);
            // A malformed report ends the thread; the missing events then fail a check.
            for told in reports.map_while(Result::ok) {
                // The process has opened it.
                let _ = path.take().map(std::fs::remove_file);
                report(told);
            }
            let _ = path.map(std::fs::remove_file);
        })?;
        Ok(Self { _open: open })
    }
}

/// Reads the FIFO until its writer, or the [`Monitor`], is gone.
struct Reader {
    fifo: File,
    closed: OwnedFd,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut sources = [self.fifo.as_fd(), self.closed.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut sources, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if sources[1].any() == Some(true) {
                return Ok(0);
            }
            match self.fifo.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn reports_arrive_one_by_one_until_the_writer_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let (told, reports) = mpsc::channel();
        let _monitor = Monitor::start(&path, move |report| told.send(report).unwrap()).unwrap();
        let mut writer = File::options().write(true).open(&path).unwrap();
        for event in ["paused", "resumed"] {
            let text = format!(
                "{{\n  \"timestamp\": {{\"secs\": 0, \"nanos\": 1}},\n  \"source\": \"vm\",\n  \"event\": \"{event}\",\n  \"properties\": null\n}}\n\n"
            );
            writer.write_all(text.as_bytes()).unwrap();
            let report = reports.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(report, Report { source: "vm".into(), event: event.into() });
        }
        drop(writer);
        let ended = reports.recv_timeout(Duration::from_secs(10));
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_process_that_never_reports_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (told, reports) = mpsc::channel();
        let path = folder.path().join("events");
        drop(Monitor::start(&path, move |report| told.send(report).unwrap()).unwrap());
        let ended = reports.recv_timeout(Duration::from_secs(10));
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

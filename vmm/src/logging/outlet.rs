//! A bounded queue of lines for a reader that may be slow or missing. Lines that do not fit are
//! dropped and counted, and a note with their number is logged when the reader reads again.

use std::collections::VecDeque;
use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::sink::Sink;

/// Maximum number of queued bytes.
pub const CAPACITY: usize = 256 << 10;

/// A sink, and the lines that it has not accepted yet.
#[derive(Debug)]
pub struct Outlet {
    sink: Sink,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Dropped lines that the reader has not been told about.
    lost: u64,
    /// The queued note about lost lines, if any.
    note: Option<Note>,
}

#[derive(Debug)]
struct Note {
    /// Number of queued bytes up to the end of the note.
    end: usize,
    /// Number of lost lines that it reports.
    lost: u64,
}

impl Outlet {
    /// Creates an outlet with an empty queue.
    pub const fn new(sink: Sink) -> Self {
        Self { sink, queue: Mutex::new(Queue { bytes: VecDeque::new(), lost: 0, note: None }) }
    }

    /// Allocates the queue in advance: later there may be no memory.
    pub fn reserve(&self) {
        self.with(|queue, _| queue.bytes.reserve(CAPACITY));
    }

    /// Takes whole lines, and writes them at once if the sink accepts them. Returns true if lines
    /// wait now and none did before.
    pub fn put(&self, lines: &[u8]) -> bool {
        self.with(|queue, sink| {
            let waited = !queue.bytes.is_empty();
            queue.put(lines, sink);
            !waited && !queue.bytes.is_empty()
        })
    }

    /// Writes as much as the sink accepts now.
    pub fn flush(&self) {
        self.with(Queue::flush);
    }

    /// Returns the descriptor to poll for writing, if lines are queued.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.with(|queue, _| !queue.bytes.is_empty()).then(|| self.sink.fd())
    }

    /// Waits until all lines are written, but no longer than `limit`.
    pub fn drain(&self, limit: Duration) {
        let until = Instant::now() + limit;
        self.flush();
        while self.waiting().is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.sink.await_room(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            self.flush();
        }
    }

    /// Runs `act` with the queue locked and all signals blocked: a handler might never return to
    /// this thread, and the lock would stay held.
    fn with<T>(&self, act: impl FnOnce(&mut Queue, &Sink) -> T) -> T {
        let mut before = SigSet::empty();
        let masked =
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
        let done = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            act(&mut queue, &self.sink)
        };
        if masked.is_ok() {
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
        done
    }
}

impl Queue {
    fn put(&mut self, lines: &[u8], sink: &Sink) {
        self.flush(sink);
        if self.lost > 0 && self.note.is_none() {
            self.announce();
        }
        if self.bytes.len() + lines.len() > CAPACITY {
            self.lost += count(lines.iter());
        } else {
            self.bytes.extend(lines);
        }
        self.flush(sink);
    }

    /// Queues a note about lost lines, if there is room.
    fn announce(&mut self) {
        let mut note = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut note));
        let _ = writeln!(note, "  WARN cpr_vmm::logging: log_lines_lost lines={}", self.lost);
        if self.bytes.len() + note.len() <= CAPACITY {
            self.bytes.extend(note.as_bytes());
            self.note = Some(Note { end: self.bytes.len(), lost: self.lost });
        }
    }

    fn flush(&mut self, sink: &Sink) {
        while !self.bytes.is_empty() {
            match sink.write_now(self.bytes.as_slices().0) {
                Ok(written) => self.written(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => return self.lose_all(),
            }
        }
    }

    fn written(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        match &mut self.note {
            Some(note) if note.end > bytes => note.end -= bytes,
            Some(note) => {
                self.lost -= note.lost;
                self.note = None;
            }
            None => {}
        }
    }

    /// Drops all queued lines: the sink fails, such as a full disk or a pipe without a reader.
    fn lose_all(&mut self) {
        self.lost += count(self.bytes.iter()) - u64::from(self.note.is_some());
        self.note = None;
        self.bytes.clear();
    }
}

fn count<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// Creates a pipe of one page whose writing end blocks, like the stderr that a VMM inherits.
    fn pipe() -> (OwnedFd, Outlet) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        (reader, Outlet::new(Sink::File(Arc::new(File::from(writer)))))
    }

    /// Reads everything that is available now.
    fn read(reader: &OwnedFd) -> String {
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut bytes = Vec::new();
        let mut file = File::from(reader.try_clone().unwrap());
        // Data comes before the error.
        let _ = file.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn stalled_reader_is_told_how_many_lines_it_missed() {
        let (reader, outlet) = pipe();
        let line = |n: usize| format!("{n:08} {}\n", "x".repeat(90));
        let sent = 2 * CAPACITY / line(0).len();
        let began: Vec<bool> = (0..sent).map(|n| outlet.put(line(n).as_bytes())).collect();
        assert_eq!(began.iter().filter(|began| **began).count(), 1);
        let mut seen = String::new();
        while outlet.waiting().is_some() {
            seen.push_str(&read(&reader));
            outlet.flush();
        }
        seen.push_str(&read(&reader));
        assert!(!outlet.put(b"now\n"));
        seen.push_str(&read(&reader));
        let mut lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines.pop(), Some("now"));
        let note = lines.pop().unwrap();
        let kept = lines.len();
        assert!(note.ends_with(&format!("log_lines_lost lines={}", sent - kept)), "{note}");
        assert!(kept > sent / 3 && lines.iter().enumerate().all(|(n, l)| line(n).trim() == *l));
    }

    #[test]
    fn writable_line_is_written_at_once() {
        let (reader, outlet) = pipe();
        assert!(!outlet.put(b"first\n"));
        assert_eq!((read(&reader).as_str(), outlet.waiting().is_none()), ("first\n", true));
    }

    #[test]
    fn lost_lines_are_counted_once() {
        let (reader, outlet) = pipe();
        drop(reader);
        for _ in 0..3 {
            assert!(!outlet.put(b"lost\n"));
        }
        assert_eq!(outlet.with(|queue, _| queue.lost), 3);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let outlet = Outlet::new(Sink::File(Arc::new(full)));
        assert!(!outlet.put(b"lost\n") && !outlet.put(b"lost\n"));
        assert_eq!(outlet.with(|queue, _| queue.lost), 2);
    }

    #[test]
    fn draining_gives_up_without_a_reader() {
        let (_reader, outlet) = pipe();
        let lines = "line\n".repeat(2000);
        assert!(outlet.put(lines.as_bytes()));
        outlet.drain(Duration::from_millis(10));
        assert!(outlet.waiting().is_some());
    }
}

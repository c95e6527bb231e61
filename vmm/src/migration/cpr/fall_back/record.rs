//! The record that says how to execute the old binary again. It precedes the CPR state.
//!
//! Its format outlives that of the CPR state: a binary that cannot read the CPR state can still
//! fall back. Members may be added; none is ever removed or changes its meaning.

use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{getpid, gettid};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::super::named_fds::NamedFd;
use crate::state::{Envelope, EnvelopeError};
use crate::{descriptors, sys};

const ENVELOPE: Envelope = Envelope { magic: *b"CPRBACK\n", version: 1 };

/// How this process becomes the old binary again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process ID. A record with another process's ID is not for this process.
    pub pid: i32,
    /// The name of the main thread, which `execveat` does not keep.
    pub comm: ByteBuf,
    /// The arguments, the program's name first.
    pub argv: Vec<ByteBuf>,
    /// The environment, as `NAME=VALUE`.
    pub environment: Vec<ByteBuf>,
    /// The descriptor of the old binary.
    pub binary: RawFd,
    /// The descriptor of the memfd that holds this record.
    pub state: RawFd,
    /// All descriptors that crossed exec except `state`, by name.
    pub fds: Vec<NamedFd>,
    /// Descriptors that cross every exec because the parent left them inheritable.
    pub inherited: Vec<RawFd>,
    /// The process that holds the old address space; 0 if there is none.
    pub helper: i32,
    /// The signals that were blocked, as a set of `signal - 1`.
    pub signal_mask: u64,
    /// The deadline of the new binary, in milliseconds.
    pub deadline_ms: u64,
    /// `CLOCK_MONOTONIC` when the guest will have been stopped for as long as it may be, in
    /// nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_end_ns: Option<u64>,
}

/// Errors from reading a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The content is not a record.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The record cannot be decoded, or is inconsistent.
    #[error("its fallback record is invalid: {0}")]
    Decode(String),
}

impl Record {
    /// Creates the record while the guest still runs, without the descriptors.
    pub fn prepare(deadline: Duration) -> Self {
        Self::with(inherited(descriptors::open()), deadline)
    }

    /// Creates the record in a process that took the guest over by means of this one and owns no
    /// other descriptor that crosses exec, so not every descriptor needs to be checked.
    pub fn prepare_next(&self, deadline: Duration) -> Self {
        Self::with(inherited(self.inherited.iter().copied()), deadline)
    }

    fn with(inherited: Vec<RawFd>, deadline: Duration) -> Self {
        let bytes = |text: OsString| ByteBuf::from(text.into_vec());
        let environment = std::env::vars_os().map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            ByteBuf::from(entry)
        });
        Self {
            pid: std::process::id() as i32,
            comm: name_of_main_thread().into(),
            argv: without_fail_points(std::env::args_os()).map(bytes).collect(),
            environment: environment.collect(),
            binary: -1,
            state: -1,
            fds: Vec::new(),
            inherited,
            helper: 0,
            signal_mask: signal_mask(),
            deadline_ms: deadline.as_millis() as u64,
            downtime_end_ns: None,
        }
    }

    /// Encodes the record, to be followed by the CPR state.
    pub fn seal(&self) -> Vec<u8> {
        let mut body = Vec::new();
        ciborium::into_writer(self, &mut body)
            .expect("writing to memory cannot fail and the record has no type CBOR lacks");
        ENVELOPE.seal(&body).0
    }

    /// Decodes the record at the start of `bytes`, and returns it with the bytes that follow.
    pub fn open(bytes: &[u8]) -> Result<(Self, &[u8]), RecordError> {
        const MAX_DEPTH: usize = 16;
        let (body, _, rest) = ENVELOPE.open_first(bytes)?;
        let record = ciborium::de::from_reader_with_recursion_limit(body, MAX_DEPTH)
            .map_err(|error| RecordError::Decode(error.to_string()))?;
        Ok((record, rest))
    }

    /// Closes descriptors that a wrapper has left open (some shells do so with their script).
    ///
    /// # Safety
    /// Nothing in this process may own a descriptor except the first three and those named here.
    pub unsafe fn close_strays(&self) {
        let mut known: Vec<RawFd> = self.numbers().chain(self.inherited.iter().copied()).collect();
        known.retain(|fd| *fd > 2);
        known.sort_unstable();
        let mut from = 3;
        for fd in known {
            if fd > from {
                // SAFETY: nothing owns one of these: the caller's promise.
                unsafe { libc::close_range(from as libc::c_uint, fd as libc::c_uint - 1, 0) };
            }
            from = from.max(fd + 1);
        }
        // SAFETY: as above.
        unsafe { libc::close_range(from as libc::c_uint, libc::c_uint::MAX, 0) };
    }

    /// Returns how long the new binary may take from now on.
    pub fn time_left(&self) -> Duration {
        let deadline = Duration::from_millis(self.deadline_ms);
        self.downtime_left().map_or(deadline, |left| left.min(deadline))
    }

    /// Returns how long the guest may still be stopped; `None`: for any time.
    pub fn downtime_left(&self) -> Option<Duration> {
        let end = self.downtime_end_ns?;
        Some(Duration::from_nanos(end.saturating_sub(sys::monotonic_ns())))
    }

    /// Returns every descriptor that crossed exec.
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.fds.iter().map(|named| named.fd).chain([self.state])
    }

    /// Returns the blocked signals as a set.
    pub fn mask(&self) -> SigSet {
        let blocked = |signal: &Signal| self.signal_mask >> (*signal as i32 - 1) & 1 == 1;
        Signal::iterator().filter(blocked).collect()
    }
}

/// Converts to the strings of `execve`; one with a NUL, which the system never passes, is left out.
pub fn strings(of: &[ByteBuf]) -> Vec<CString> {
    of.iter().filter_map(|bytes| CString::new(bytes.as_slice()).ok()).collect()
}

fn name_of_main_thread() -> Vec<u8> {
    if gettid() != getpid()
        && let Ok(mut name) = std::fs::read("/proc/self/comm")
    {
        name.retain(|byte| *byte != b'\n');
        return name;
    }
    // Without /proc, use the name of this thread, even if another one is the main thread.
    name_of_this_thread()
}

/// Returns this thread's name. nix is no alternative: it lets the kernel write to a buffer that the
/// compiler may assume unchanged.
fn name_of_this_thread() -> Vec<u8> {
    let mut name = [0_u8; 16];
    let arguments = [libc::PR_GET_NAME as usize, name.as_mut_ptr() as usize];
    // SAFETY: the kernel writes 16 bytes, the last of them 0.
    let _ = unsafe { sys::call(libc::SYS_prctl, arguments) };
    name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// Returns those of `fds` that the parent left open for every exec.
fn inherited(fds: impl IntoIterator<Item = RawFd>) -> Vec<RawFd> {
    let crosses = |fd: &RawFd| descriptors::crosses_exec(*fd) == Some(true);
    fds.into_iter().filter(|fd| *fd > 2).filter(crosses).collect()
}

/// Returns `args` without fail points: each acts once, and has done so in this process.
fn without_fail_points(args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    const OPTION: &str = "--failpoint";
    let mut is_value = false;
    args.filter(move |word| {
        let acted = std::mem::replace(&mut is_value, word == OPTION);
        let text = word.to_string_lossy();
        !(cfg!(feature = "failpoints") && (acted || text.split('=').next() == Some(OPTION)))
    })
}

fn signal_mask() -> u64 {
    let mut mask = SigSet::empty();
    // It fails only for an invalid `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask));
    mask.iter().fold(0, |set, signal| set | 1 << (signal as i32 - 1))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn fallback_drops_fail_point_options() {
        let words = ["vmm", "--failpoint", "commit=hang", "--name", "a", "--failpoint=ram=panic"];
        let left: Vec<_> = without_fail_points(words.map(OsString::from).into_iter()).collect();
        assert_eq!(left, ["vmm", "--name", "a"]);
    }

    #[test]
    fn record_reads_back_with_unknown_data_after_it() {
        let downtime_end_ns = Some(u64::MAX);
        let record = Record { downtime_end_ns, ..Record::prepare(Duration::from_secs(1)) };
        assert_eq!(record.argv.len(), std::env::args_os().count());
        let mut bytes = record.seal();
        bytes.extend(b"a CPR state of the future");
        let (read, rest) = Record::open(&bytes).unwrap();
        assert_eq!((read, rest), (record, &b"a CPR state of the future"[..]));
    }

    #[test]
    fn the_earlier_of_two_ends_counts() {
        let record = Record::prepare(Duration::from_secs(100));
        assert_eq!((record.time_left(), record.downtime_left()), (Duration::from_secs(100), None));
        let after = |ns| Record { downtime_end_ns: Some(ns), ..record.clone() };
        assert_eq!(after(u64::MAX).time_left(), Duration::from_secs(100));
        assert_eq!(after(1).time_left(), Duration::ZERO);
        let minute = after(sys::monotonic_ns() + 60_000_000_000).time_left();
        assert!(minute > Duration::from_secs(50) && minute <= Duration::from_secs(60));
    }

    /// Records of version 1 stay readable.
    #[test]
    fn the_format_is_frozen() {
        let record = Record {
            pid: 1,
            comm: b"vmm".to_vec().into(),
            argv: vec![b"vmm".to_vec().into()],
            environment: vec![b"A=B".to_vec().into()],
            binary: 3,
            state: 4,
            fds: vec![NamedFd { name: "ram.pc.ram".to_owned(), id: 0, fd: 5 }],
            inherited: vec![7],
            helper: 6,
            signal_mask: 1,
            deadline_ms: 30_000,
            downtime_end_ns: None,
        };
        insta::assert_snapshot!(record.seal().escape_ascii());
    }

    /// Runs alone: a child of another test would inherit the descriptor too.
    #[test]
    #[serial_test::serial(children)]
    fn next_record_keeps_only_inheritable_descriptors() {
        let [crosses, closes] = [FdFlag::empty(), FdFlag::FD_CLOEXEC].map(|flags| {
            let file = File::open("/dev/null").unwrap();
            fcntl(&file, FcntlArg::F_SETFD(flags)).unwrap();
            file
        });
        let numbers = [1, crosses.as_raw_fd(), closes.as_raw_fd(), 1 << 20];
        let mut record = Record::prepare(Duration::ZERO);
        assert!(record.inherited.contains(&numbers[1]) && !record.inherited.contains(&numbers[2]));
        record.inherited = numbers.to_vec();
        assert_eq!(record.prepare_next(Duration::ZERO).inherited, [numbers[1]]);
    }

    #[test]
    fn reads_thread_name() {
        let name = |name: &str| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn(name_of_this_thread).unwrap().join().unwrap()
        };
        assert_eq!(name("some-thread"), b"some-thread");
        assert_eq!(name("longer-than-it-may-be"), b"longer-than-it-");
    }

    #[test]
    fn decodes_signal_mask() {
        let mut record = Record::prepare(Duration::ZERO);
        record.signal_mask = 1 << (Signal::SIGTERM as i32 - 1);
        assert_eq!(record.mask().iter().collect::<Vec<_>>(), [Signal::SIGTERM]);
    }
}

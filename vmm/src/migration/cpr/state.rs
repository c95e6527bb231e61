//! The CPR state: what the new process must know before it makes anything, in a sealed memfd, behind
//! the way back to the old binary.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use cpr_qmp::migration::MigrationParameters;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::MFdFlags;
use serde::{Deserialize, Serialize};

use super::fall_back::{Record, RecordError};
use crate::descriptors;
use crate::memfd::{self, all_seals};
use crate::memory::RamBlockInfo;
use crate::migration::status::Standing;
use crate::qmp::ServerState;
use crate::state::{Envelope, EnvelopeError, Fingerprint};
use crate::unix_listener::ListenerState;
use crate::vcpu::GuestEvent;

/// The environment variable with the memfd's number.
pub const ENV_NAME: &str = "CPR_EXEC_STATE";
/// The memfd's name.
const MEMFD_NAME: &std::ffi::CStr = c"cpr-state";
/// Version 2: one CBOR map behind a [`Record`].
pub const CPR_VERSION: u32 = 2;
const ENVELOPE: Envelope = Envelope { magic: *b"CPREXEC\n", version: CPR_VERSION };
/// Deepest nesting of CBOR that is followed.
const MAX_DEPTH: usize = 32;
/// Most bytes that are read: QMP buffers are the largest part.
const MAX_BYTES: u64 = 64 << 20;
// The rest, of which arguments and environment are the largest part, is less than 8 MiB.
const _: () = assert!(crate::qmp::MAX_STATE as u64 + (8 << 20) <= MAX_BYTES);

/// What the old process tells the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CprState {
    /// The run state before the update.
    pub run_state: RunState,
    /// The RAM blocks among the descriptors that crossed.
    pub ram_blocks: Vec<RamBlockInfo>,
    /// The one saved state that goes with this.
    pub channel: Fingerprint,
    /// The QMP server.
    pub qmp: ServerState,
    /// The serial port's listening socket.
    pub serial_listener: Option<ListenerState>,
    /// What the guest asked for and nobody had time to do.
    pub pending_events: Vec<GuestEvent>,
    /// The keeper, which holds the old address space.
    pub helper: Option<i32>,
    /// The migration.
    pub migration: MigrationRecord,
    /// The PID file, absolute. Older binaries neither write nor read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<serde_bytes::ByteBuf>,
    /// The migration parameters, for an old binary that is returned to.
    pub parameters: MigrationParameters,
    /// Which MSRs the list of those that are saved was chosen from
    /// (`StateCapabilities::msr_choice`): to choose again from the same takes a VM of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msr_choice: Option<u64>,
    /// For the process that continues a guest whose own process did not save it for an update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// What a process that was taken unawares was doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// An update was under way.
    pub updating: bool,
    /// The newest migration.
    pub migration: Standing,
}

/// What goes on of the migration in the new process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// The capability `events`.
    pub events: bool,
    /// `CLOCK_MONOTONIC` at `migrate`, in nanoseconds.
    pub began_ns: u64,
    /// `CLOCK_MONOTONIC` when the vCPUs stood still, in nanoseconds.
    pub paused_ns: u64,
}

/// `CLOCK_MONOTONIC`, which goes on over exec.
pub fn monotonic_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("Linux always has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Why the CPR state could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A system call failed.
    #[error("cannot write the CPR state to a memfd: {call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The new process would not read it.
    #[error("the CPR state has {bytes} bytes, more than the {limit} that the new process reads")]
    TooLarge {
        /// Bytes.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
}

/// An empty memfd, made while the guest runs.
#[derive(Debug)]
pub struct StateFd(OwnedFd);

impl StateFd {
    /// Makes it, close-on-exec.
    pub fn create() -> Result<Self, WriteError> {
        memfd::create(MEMFD_NAME, MFdFlags::empty())
            .map(Self)
            .map_err(|errno| WriteError::System { call: "memfd_create", source: errno.into() })
    }

    /// Writes the way back and the state, and seals them.
    pub fn write(self, record: &Record, state: &CprState) -> Result<SealedFd, WriteError> {
        let mut body = Vec::new();
        ciborium::into_writer(state, &mut body)
            .expect("writing to memory cannot fail and the state has no type CBOR lacks");
        let mut content = record.seal();
        content.extend(ENVELOPE.seal(&body).0);
        if content.len() as u64 > MAX_BYTES {
            return Err(WriteError::TooLarge { bytes: content.len() as u64, limit: MAX_BYTES });
        }
        seal(self.0, &content)
    }
}

impl AsRawFd for StateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An empty memfd for a copy of the saved state: what happens to the channel's file is then no
/// matter for an old binary that is returned to.
#[derive(Debug)]
pub struct SavedStateFd(OwnedFd);

impl SavedStateFd {
    /// Makes it, close-on-exec.
    pub fn create() -> Result<Self, WriteError> {
        memfd::create(c"cpr-saved-state", MFdFlags::empty())
            .map(Self)
            .map_err(|errno| WriteError::System { call: "memfd_create", source: errno.into() })
    }

    /// Writes it and seals it.
    pub fn write(self, saved: &[u8]) -> Result<SealedFd, WriteError> {
        seal(self.0, saved)
    }
}

impl AsRawFd for SavedStateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn seal(memfd: OwnedFd, content: &[u8]) -> Result<SealedFd, WriteError> {
    let error = |call| move |source| WriteError::System { call, source };
    let mut file = File::from(memfd);
    #[cfg(feature = "failpoints")]
    let part =
        &content[..crate::failpoints::written(crate::failpoints::Point::State, content.len())];
    #[cfg(not(feature = "failpoints"))]
    let part = content;
    file.write_all(part).map_err(error("write"))?;
    let written = file.metadata().map_err(error("fstat"))?.len();
    if written != content.len() as u64 {
        let short = format!("it has {written} bytes after writing {}", content.len());
        return Err(error("write")(io::Error::other(short)));
    }
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))
        .map_err(|errno| error("seal")(errno.into()))?;
    Ok(SealedFd(file.into()))
}

/// A memfd that nobody can change any more.
#[derive(Debug)]
pub struct SealedFd(OwnedFd);

impl AsFd for SealedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why the CPR state that the environment names is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The value is no number.
    #[error("\"{0}\" is no descriptor number")]
    Number(String),
    /// One of the first three descriptors, which belong to nobody.
    #[error("descriptor {0} is one of stdin, stdout and stderr")]
    Standard(RawFd),
    /// The number is no open descriptor.
    #[error("descriptor {fd} is not open: {source}")]
    NotOpen {
        /// The number.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// The descriptor is something else.
    #[error("descriptor {0} is no sealed memfd")]
    NotSealed(RawFd),
    /// The content cannot be read.
    #[error("descriptor {fd} cannot be read: {source}")]
    Read {
        /// The number.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// The content is too large.
    #[error("descriptor {fd} has {bytes} bytes, more than any CPR state")]
    TooLarge {
        /// The number.
        fd: RawFd,
        /// Bytes.
        bytes: u64,
    },
    /// The content is not ours.
    #[error("descriptor {fd} holds no CPR state: {source}")]
    Envelope {
        /// The number.
        fd: RawFd,
        /// Why.
        source: EnvelopeError,
    },
    /// There is no way back in front of the content, so it is not ours.
    #[error("descriptor {fd} holds no CPR state: {source}")]
    Record {
        /// The number.
        fd: RawFd,
        /// Why.
        source: RecordError,
    },
    /// The content is another process's.
    #[error("descriptor {fd} holds the CPR state of process {pid}")]
    OtherProcess {
        /// The number.
        fd: RawFd,
        /// Whose it is.
        pid: i32,
    },
    /// The content cannot be decoded.
    #[error("the CPR state in descriptor {fd} cannot be decoded: {why}")]
    Decode {
        /// The number.
        fd: RawFd,
        /// Why.
        why: String,
    },
}

/// A sealed memfd that was found to hold the way back and something behind it.
#[derive(Debug)]
pub struct Sealed {
    /// The way back.
    pub record: Record,
    fd: RawFd,
    state: Vec<u8>,
}

/// Looks at what `value` (of [`ENV_NAME`]) names. Opens and closes nothing.
pub fn open(value: &str) -> Result<Sealed, ReadError> {
    let not_number = || ReadError::Number(value.to_owned());
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_number());
    }
    let fd: RawFd = value.parse().map_err(|_| not_number())?;
    if fd <= 2 {
        return Err(ReadError::Standard(fd));
    }
    open_number(fd)
}

/// Looks for it among all open descriptors: the value was lost or forged, and the guest must not be.
pub fn find() -> Option<Sealed> {
    descriptors::open().into_iter().filter(|fd| *fd > 2).find_map(|fd| open_number(fd).ok())
}

fn open_number(fd: RawFd) -> Result<Sealed, ReadError> {
    // SAFETY: a closed number gives EBADF; this is `main`'s first act, so none is closed meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let seals = match fcntl(borrowed, FcntlArg::F_GET_SEALS) {
        Ok(seals) => SealFlag::from_bits_truncate(seals),
        Err(Errno::EINVAL) => return Err(ReadError::NotSealed(fd)),
        Err(errno) => return Err(ReadError::NotOpen { fd, source: errno.into() }),
    };
    if !seals.contains(all_seals()) {
        return Err(ReadError::NotSealed(fd));
    }
    let bytes = content(borrowed)?;
    let (record, state) =
        Record::open(&bytes).map_err(|source| ReadError::Record { fd, source })?;
    // Its keeper reads what was meant for it.
    if ![record.pid, record.helper].contains(&(std::process::id() as i32)) {
        return Err(ReadError::OtherProcess { fd, pid: record.pid });
    }
    if record.state != fd {
        let why = format!("it was written to descriptor {}", record.state);
        return Err(ReadError::Record { fd, source: RecordError::Decode(why) });
    }
    let state = state.to_vec();
    Ok(Sealed { record, fd, state })
}

impl Sealed {
    /// The CPR state.
    pub fn state(&self) -> Result<CprState, ReadError> {
        let fd = self.fd;
        let (body, _) =
            ENVELOPE.open(&self.state).map_err(|source| ReadError::Envelope { fd, source })?;
        #[cfg(feature = "failpoints")]
        let rest = crate::failpoints::lose_of_cpr_state(body);
        #[cfg(feature = "failpoints")]
        let body = &*rest;
        let mut body = body;
        let decode = |why: String| ReadError::Decode { fd, why };
        let state = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
            .map_err(|error| decode(error.to_string()))?;
        if !body.is_empty() {
            return Err(decode(format!("{} bytes follow it", body.len())));
        }
        Ok(state)
    }
}

fn content(memfd: BorrowedFd<'_>) -> Result<Vec<u8>, ReadError> {
    let fd = memfd.as_raw_fd();
    let read = |source| ReadError::Read { fd, source };
    let file = File::from(memfd.try_clone_to_owned().map_err(read)?);
    let bytes = file.metadata().map_err(read)?.size();
    if bytes > MAX_BYTES {
        return Err(ReadError::TooLarge { fd, bytes });
    }
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, 0).map_err(read)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> CprState {
        CprState {
            run_state: RunState::Running,
            ram_blocks: vec![RamBlockInfo { name: "pc.ram".to_owned(), size: 1 << 26 }],
            channel: SAMPLE.seal(b"state").1,
            qmp: ServerState::default(),
            serial_listener: None,
            pending_events: Vec::new(),
            helper: Some(7),
            migration: MigrationRecord { events: true, began_ns: 1, paused_ns: 2 },
            pid_file: None,
            parameters: MigrationParameters::default(),
            msr_choice: None,
            live: None,
        }
    }

    fn seal_for(memfd: StateFd, record: &Record) -> SealedFd {
        let record = Record { state: memfd.as_raw_fd(), ..record.clone() };
        memfd.write(&record, &state()).unwrap()
    }

    fn record() -> Record {
        Record::prepare(std::time::Duration::ZERO)
    }

    const SAMPLE: Envelope = Envelope { magic: *b"SAMPLE  ", version: 1 };

    fn error_of(fd: &impl AsRawFd) -> String {
        let number = fd.as_raw_fd().to_string();
        let text = open(&number).unwrap_err().to_string();
        text.replace(&format!("descriptor {number} "), "descriptor N ")
    }

    #[test]
    fn what_is_sealed_can_be_read() {
        let sealed = seal_for(StateFd::create().unwrap(), &record());
        let read = open(&sealed.0.as_raw_fd().to_string()).unwrap();
        let record = Record { state: sealed.0.as_raw_fd(), ..record() };
        assert_eq!((read.state().unwrap(), read.record), (state(), record));
    }

    #[test]
    fn a_sealed_state_cannot_be_changed() {
        let sealed = StateFd::create().unwrap().write(&record(), &state()).unwrap();
        let file = File::from(sealed.0);
        assert!(file.write_at(b"X", 0).is_err());
        assert!(file.set_len(1).is_err());
    }

    #[test]
    fn a_state_that_would_not_be_read_is_not_written() {
        let listener = ListenerState {
            fd: String::new(),
            path: vec![0; MAX_BYTES as usize],
            device: 0,
            inode: 0,
        };
        let large = CprState { serial_listener: Some(listener), ..state() };
        let error = StateFd::create().unwrap().write(&record(), &large).unwrap_err();
        assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn forged_values_are_refused_by_name() {
        let unsealed = StateFd::create().unwrap().0;
        let null = File::open("/dev/null").unwrap();
        let foreign = StateFd::create().unwrap().0;
        File::from(foreign.try_clone().unwrap()).write_all(&SAMPLE.seal(b"x").0).unwrap();
        fcntl(&foreign, FcntlArg::F_ADD_SEALS(all_seals())).unwrap();
        let mut texts: Vec<_> = ["", "-1", "x", "3 ", "99999999999", "987654", "2"]
            .map(|v| open(v).unwrap_err().to_string())
            .into();
        texts.push(error_of(&unsealed));
        texts.push(error_of(&null));
        texts.push(error_of(&foreign));
        let other = Record { pid: 1, ..record() };
        texts.push(error_of(&seal_for(StateFd::create().unwrap(), &other).as_fd()));
        let future = StateFd::create().unwrap().0;
        let mut content = Record { state: future.as_raw_fd(), ..record() }.seal();
        content.extend(SAMPLE.seal(b"x").0);
        let future = seal(future, &content).unwrap();
        let number = future.0.as_raw_fd().to_string();
        texts.push(open(&number).unwrap().state().unwrap_err().to_string().replace(&number, "N"));
        insta::assert_debug_snapshot!(texts);
    }
}
